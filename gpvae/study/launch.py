"""Train what a study lacks: several runs side by side, each in a process of its own, parents first.

Rows are kept in the store as runs finish, and a call that was interrupted goes on where it stood. The
processes end with the one that started them, whatever ends it."""
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from gpvae.checks import require
from gpvae.files import device_name, open_folder, pick_device
from gpvae.study import OWN_PACKAGE
from gpvae.study.config import RunConfig, resolve_all
from gpvae.study.methods import METHODS
from gpvae.study.run import TIMES, is_finished, open_run, runs_root, time_run
from gpvae.study.store import Store
from gpvae.study.studies import Study

JOBS = 2            # runs side by side
PATIENCE = 10.      # seconds that a process has to end before it is killed
USUAL_RATE = 8e-5   # seconds of an image and an epoch where no row tells: 2 × 500 units, one core
# `python -P` keeps the current folder off the path; another gpvae on the path is not taken either
CHILD = f"{OWN_PACKAGE}; from gpvae.study.cli import main; sys.exit(main())"


class Job(NamedTuple):
    "A run that is not finished."
    config: RunConfig
    parents: tuple[str, ...]  # ids of unfinished runs that must be finished before
    depth: int                # how many runs stand in line before it


class Failure(NamedTuple):
    "A run that failed."
    config: RunConfig
    status: int   # of its process; negative: the signal that ended it
    message: str  # its last line

    def __str__(self) -> str:
        name = " ".join(self.config.spec.text().split()[:4])
        return f"{name} failed with status {self.status}: {self.message}"


def missing(study: Study, store: Store, runs: Path,  # folder of all runs
            folders: bool = False                    # must they be finished here, whatever the store has?
            ) -> dict[str, Job]:
    "Runs of a study, by id, that are neither in the store nor finished here; parents come first."
    rows, jobs = store.table("runs"), {}
    kept = set() if folders else set(zip(rows["run"], rows["spec"]))

    def add(config: RunConfig) -> None:
        if config.id in jobs or is_finished(runs / config.id):
            return
        parent = config.parent if config.trained.id == config.id else config.trained
        if parent is not None:
            add(parent)
        waits = parent is not None and parent.id in jobs
        parents, depth = ((parent.id,), jobs[parent.id].depth + 1) if waits else ((), 0)
        jobs[config.id] = Job(config, parents, depth)

    for config in resolve_all(study.specs):
        if (config.id, config.spec.text()) not in kept:
            add(config)
    return dict(sorted(jobs.items(), key=lambda item: item[1].depth))


def seconds_of(config: RunConfig, rows: pd.DataFrame) -> float:
    "Seconds that training takes at most, by the nearest rows of a store; a rough guess where there are none."
    if config.trained.id != config.id:
        return 0.
    rows = rows[rows["epochs"] > 0] if "epochs" in rows else rows
    near = dict(machine=device_name(pick_device(None)), dataset=config.dataset, budget=config.spec.budget,
                method=config.method, z_dim=config.z_dim)
    for column, value in near.items():
        same = rows[rows[column] == value] if column in rows else rows
        rows = same if len(same) else rows
    rate = USUAL_RATE
    if len(rows):
        costs = rows["method"].map({name: method.step_cost for name, method in METHODS.items()})
        rate = (rows["train_seconds"] / (rows["n_train"] * rows["epochs"] * costs)).median()
    rate = USUAL_RATE if math.isnan(rate) else rate
    return float(rate * METHODS[config.method].step_cost * config.data.n_train * config.train.epochs)


def plan(study: Study, store: Store,
         runs: str | Path | None = None,  # None: GPVAE_RUNS, else the user's cache
         folders: bool = False            # as for `missing`
         ) -> pd.DataFrame:
    "What is finished and what is missing of each line and size, and the hours of training that are missing."
    jobs, rows = missing(study, store, runs_root(runs), folders), store.table("runs")
    hours = {id: seconds_of(job.config, rows) / 3600 for id, job in jobs.items()}
    configs = list(zip(study.lines, resolve_all(study.specs)))
    asked = {config.id for _, config in configs}
    configs += [("runs that others begin with", job.config) for id, job in jobs.items() if id not in asked]
    table = [(line, c.z_dim, c.id not in jobs, c.id in jobs, hours.pop(c.id, 0.)) for line, c in configs]
    table = pd.DataFrame(table, columns=["line", "z_dim", "finished", "missing", "hours"])
    return table.groupby(["line", "z_dim"], sort=False).sum()


def describe_plan(table: pd.DataFrame,  # of `plan`
                  jobs: int = JOBS      # runs side by side
                  ) -> str:
    "A plan in one line."
    finished, lacking = int(table["finished"].sum()), int(table["missing"].sum())
    if not lacking:
        return f"{finished} finished, none missing"
    hours = table["hours"].sum() / min(jobs, lacking)
    took = f"{hours:.1f} hours" if hours >= 1 else f"{math.ceil(60 * hours)} min"
    return f"{finished} finished, {lacking} missing, about {took} with {jobs} side by side"


def check_start(store: Store, jobs: int, device: str | None) -> None:
    "Raise `InputError` for what can be known to fail before anything is trained."
    require(jobs >= 1, f"jobs is {jobs}: at least one run must be allowed")
    pick_device(device)
    open_folder(store.folder, "pass another one by --out")


def finish(study: Study, store: Store,
           runs: str | Path | None = None,  # folder of all runs; None: GPVAE_RUNS, else the user's cache
           jobs: int = JOBS,                # runs side by side
           device: str | None = None,       # None: a GPU if there is one
           bar: bool = True,                # show progress
           folders: bool = False            # as for `missing`
           ) -> list[Failure]:
    "Train what is missing, time it, and keep the rows; a failure stops none but the runs that begin with it."
    runs, failures, futures = runs_root(runs), [], {}
    todo = missing(study, store, runs, folders)
    check_start(store, jobs, device)
    keeper = Keeper(study, store, runs)
    keeper.keep()
    several = len(todo) > 1
    launcher, pool = Launcher(runs, device, bar, position=int(several)), ThreadPoolExecutor(jobs)
    try:
        for id, job in todo.items():
            futures[id] = pool.submit(launcher.run, job.config, [futures[parent] for parent in job.parents])
        with tqdm(total=len(todo), unit="run", desc="all runs", disable=not (bar and several)) as shown:
            for future in as_completed(futures.values()):
                config, failure = future.result()
                failures += [failure] if failure else []
                keeper.keep(config.id)
                shown.update()
    finally:
        launcher.stop()
        pool.shutdown(cancel_futures=True)
    keeper.time(device, bar)
    return failures


class Launcher:
    "Runs in processes of their own, which end when this one does."

    def __init__(self, runs: Path, device: str | None, bar: bool,
                 position: int  # line of the terminal for the run in front
                 ):
        self.runs, self.device, self.bar, self.position = runs, device, bar, position
        self.lock, self.in_front = threading.Lock(), threading.Lock()
        self.processes: set[subprocess.Popen] | None = set()  # None: no more may be started

    def run(self, config: RunConfig, parents: Iterable[Future] = ()) -> tuple[RunConfig, Failure | None]:
        "Run a configuration after its parents, and wait for it."
        for parent, failure in (future.result() for future in parents):
            if failure:
                message = f"it begins with run {parent.id}, which failed"
                return config, Failure(config, failure.status, message)
        shown = self.bar and self.in_front.acquire(blocking=False)
        try:
            process = self.start(config, shown)
            said = process.stdout.read().strip()
            status = process.wait()
            process.stdin.close()
        finally:
            if shown:
                self.in_front.release()
        if not status:
            return config, None
        return config, Failure(config, status, said.splitlines()[-1] if said else "it said nothing")

    def start(self, config: RunConfig, shown: bool) -> subprocess.Popen:
        "Start a run; its standard input stays open as long as this process lives."
        words = ["run", "--spec", json.dumps(config.spec.to_json()), "--attached", "--runs", str(self.runs)]
        words += [] if self.device is None else ["--device", self.device]
        words += ["--position", str(self.position)] if shown else ["--quiet"]
        with self.lock:
            require(self.processes is not None, "no run is started any more")
            process = subprocess.Popen([sys.executable, "-P", "-c", CHILD, *words], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=None if shown else subprocess.STDOUT,
                                       text=True, errors="replace")
            self.processes.add(process)
        return process

    def stop(self) -> None:
        "End the runs that are still going, and wait for them."
        with self.lock:
            processes, self.processes = self.processes or (), None
        going = [p for p in processes if p.poll() is None]
        for process in going:
            process.terminate()
        end = time.monotonic() + PATIENCE
        for process in going:
            try:
                process.wait(max(0., end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


class Keeper:
    "Puts the finished runs of a study into a store."

    def __init__(self, study: Study, store: Store, runs: Path):
        self.store, self.runs, self.configs = store, runs, resolve_all(study.specs)
        firsts: dict[tuple, str] = {}
        for line, config in zip(study.lines, self.configs):
            firsts.setdefault((line, config.z_dim), config.id)
        self.pictured = set(firsts.values())  # the first seed of each line and size

    def keep(self, id: str | None = None  # None: all
             ) -> None:
        "Keep what is finished here where the store lacks the row, its times or its pictures."
        rows = self.store.table("runs")
        times = rows[TIMES[0]] if TIMES[0] in rows else [math.nan] * len(rows)
        timed = {(run, spec): time == time for run, spec, time in zip(rows["run"], rows["spec"], times)}
        results = []
        for config in self.configs:
            folder, key = self.runs / config.id, (config.id, config.spec.text())
            if id in (None, config.id) and is_finished(folder):
                whole = timed.get(key) or key in timed and not (folder / "timing.json").exists()
                pictures = config.id not in self.pictured or "samples" in self.store.arrays(config.id)
                results += [] if whole and pictures else [open_run(folder, config.spec)]
        if results:
            self.store.keep(results, self.pictured)

    def time(self, device: str | None, bar: bool) -> None:
        "Time, one by one, the finished runs of this machine that have no times yet."
        here = device_name(pick_device(device))
        folders = dict.fromkeys(self.runs / config.id for config in self.configs)
        todo = [folder for folder in folders if is_finished(folder) and not (folder / "timing.json").exists()
                and open_run(folder).row["machine"] == here]
        for folder in tqdm(todo, unit="run", desc="times", disable=not bar or not todo, leave=False):
            time_run(folder, device)
            self.keep(folder.name)
