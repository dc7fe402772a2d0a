"""SIGKILL at random moments of preparing, training, evaluating, timing, saving and rendering.

The work is resumed each time; it ends with the same bits, and nothing is left over."""

import dataclasses
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import quick  # noqa: F401
import nbformat

from faults import CLEAR, SILENT, TRACEBACK, Tally
from gpvae.study.config import RunSpec, resolve
from gpvae.study.report import render
from gpvae.study.run import TIMES, open_run, run, time_run
from gpvae.study.store import Store
from gpvae.study.studies import Study
from gpvae.training import load_checkpoint
from test_resume import NOT_OF_THE_RESULT, result
from test_resume import SPEC as LONG

SECONDS = 330.0  # then no new kill
EPOCHS = 10
SPEC = LONG.change(epochs=EPOCHS)
OTHER = dataclasses.replace(SPEC, seed=1)

class Job(NamedTuple):
    "What is killed; every function is handed the job's own folder."

    ready: Callable[[Path], None]  # fills an empty folder with what the work starts from
    work: Callable[[Path], None]
    everything: Callable[[Path], dict]  # all that must be the same bits in the end, by name
    where: Callable[[Path], str]  # how far a killed process has come

def data_of(folder: Path) -> None:
    os.environ["GPVAE_DATA"] = str(folder / "data")

def run_folder(folder: Path) -> Path:
    data_of(folder)
    return folder / "runs" / resolve(SPEC).id

# --- a run: images, training, evaluation, times, rows ---------------------------------------------

def finish(folder: Path, spec: RunSpec = SPEC) -> None:
    "Train, judge, time and keep a run."
    data_of(folder)
    at = run(spec, folder / "runs", "cpu", bar=False).folder
    if not (at / "timing.json").exists():
        time_run(at, "cpu", repeats=5)

def keep(folder: Path) -> None:
    finish(folder)
    result_of = open_run(run_folder(folder), SPEC)
    Store(folder / "store").keep([result_of], [result_of.config.id])

def of_run(folder: Path) -> dict:
    "A run, and its rows and arrays in the store; its times must be there, whatever they are."
    at, store = run_folder(folder), Store(folder / "store")
    times = [k for k in TIMES if not open_run(at).row[k] > 0]
    rows = store.table("runs").drop(
        columns=[c for c in (*NOT_OF_THE_RESULT, *TIMES) if c in store.table("runs")]
    )
    arrays = {run: {k: v.tobytes() for k, v in store.arrays(run).items()} for run in rows["run"]}
    parts = zip(("row", "history", "numbers of images", "weights"), result(at), strict=True)
    return dict(parts) | {"rows": rows.to_csv(), "modes": store.table("modes").to_csv(), "arrays": arrays,
                          "times that were not measured": times}

def stage(folder: Path) -> str:
    if not list((folder / "data").glob("prepared/digits*")):
        return "preparing images"
    at, checkpoint = run_folder(folder), run_folder(folder) / "checkpoint.safetensors"
    if not checkpoint.exists() or len(load_checkpoint(checkpoint)[1]["history"]) < EPOCHS:
        return "training"
    if not (at / "metrics.json").exists():
        return "evaluating"
    if not (at / "timing.json").exists():
        return "timing"
    return "saving" if not (folder / "store" / "modes.csv").exists() else "after saving"

# --- saving alone: a finished run, and a store that has rows and images of another ----------------

def finished(folder: Path) -> None:
    finish(folder, OTHER)
    Store(folder / "store").keep([open_run(folder / "runs" / resolve(OTHER).id, OTHER)])
    finish(folder)

def saving(folder: Path) -> str:
    "Whether a file of the store has changed yet."
    old, new = ({p.name: p.read_bytes() for p in (at / "store").rglob("*") if p.is_file()}
                for at in (folder.parent / "start", folder))
    return "saving" if old != new else "before saving"

# --- rendering: a store with a run, and no page ---------------------------------------------------

def draw(folder: Path) -> None:
    data_of(folder)
    os.environ["JUPYTER_RUNTIME_DIR"] = str(
        folder / "jupyter"
    )  # a killed process leaves the kernel's ports there
    render(Study("page", "A page", (SPEC,), reference="gpvae"), Store(folder / "store"))

def of_page(folder: Path) -> dict:
    page, files = (nbformat.read(folder / "store" / "page.ipynb", as_version=4),
                   sorted((folder / "store").rglob("*")))
    return {"page": [(c.cell_type, c.source, c.metadata, c.get("outputs")) for c in page.cells],
            "html": (folder / "store" / "page.html").read_text(),
            "files": [(p.name, p.is_file() and p.suffix in (".csv", ".npz") and p.read_bytes())
                      for p in files if p.name != ".lock"]}

# --- kills ----------------------------------------------------------------------------------------

JOBS = {"rendering": Job(keep, draw, of_page, lambda folder: "rendering"),
        "saving": Job(finished, keep, of_run, saving),
        "a run": Job(lambda folder: None, keep, of_run, stage)}

def shares(kills: int) -> dict[str, int]:
    "Kills of each job: a page takes long to render, and most that can go wrong is in a run."
    some = {"rendering": kills // 7, "saving": kills // 3}
    return some | {"a run": kills - sum(some.values())}

def start(work: Callable, folder: Path):
    "A process that does it, forked, so that its time is not that of importing torch."
    process = multiprocessing.get_context("fork").Process(target=work, args=(folder,))
    process.start()
    return process

def whole(work: Callable, folder: Path) -> float:
    "Do the work undisturbed; its seconds."
    begin, process = time.perf_counter(), start(work, folder)
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - begin

def children(pid: int) -> list[int]:
    "Processes that a process has started, where the system tells."
    return [int(p) for path in Path(f"/proc/{pid}/task").glob("*/children") for p in path.read_text().split()]

def killed(work: Callable, folder: Path, after: float) -> tuple[int, list[int]]:
    "Kill the work after so many seconds: the exit code, and the processes that it had started."
    process = start(work, folder)
    process.join(after)
    started = children(process.pid) if process.is_alive() else []
    process.kill()
    process.join()
    return process.exitcode, started

def working(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

def left_over(folder: Path, started: list[int]) -> list[str]:
    "Temporary files and folders that nothing took away, and processes that go on; locks stay."
    end = time.monotonic() + 20
    while any(map(working, started)) and time.monotonic() < end:
        time.sleep(0.1)
    files = [p for p in folder.rglob("*") if p.name.startswith((".", "tmp")) and p.name != ".lock"]
    return [str(p.relative_to(folder)) for p in files] + [f"process {p}" for p in started if working(p)]

def differences(found: dict, expected: dict) -> list[str]:
    return [f"{name} differ" for name in expected if found[name] != expected[name]]

class Work:
    "A job that is killed, again and again, until it is let finish."

    def __init__(self, job: Job, base: Path, rng: random.Random):
        self.job, self.base, self.rng, self.number = job, base, rng, 0
        self.start = base / "start"
        self.start.mkdir(parents=True)
        job.ready(self.start)
        self.seconds = whole(job.work, self.fresh())
        self.expected = job.everything(self.folder)

    def fresh(self) -> Path:
        "The next folder, as the work starts from it."
        self.folder = self.base / str(self.number)
        self.number, self.hits, self.started = self.number + 1, [], []
        shutil.copytree(self.start, self.folder)
        return self.folder

    def kill(self) -> int | None:
        "Kill once: the exit code of work that was done by then or failed, None of work that was killed."
        early = not self.hits and self.rng.random() < 0.3  # while the images are prepared
        code, started = killed(self.job.work, self.folder,
                               self.rng.uniform(0, min(0.2, self.seconds) if early else self.seconds))
        self.started += started
        if code != -signal.SIGKILL:
            return code
        self.hits.append(self.job.where(self.folder))

    def end(self, tally: Tally, code: int | None) -> None:
        "Let the work finish, and count what came of its kills."
        if code is None:
            whole(self.job.work, self.folder)
        faults = (differences(self.job.everything(self.folder), self.expected) if not code
                  else [f"exit code {code}"])
        faults += [f"{name} is left over" for name in left_over(self.folder, self.started)]
        outcome = TRACEBACK if code else SILENT if faults else CLEAR  # clear: the same bits
        for moment in self.hits or (["not killed"] if faults else []):
            tally.add(moment, f"work {self.folder.name}", (outcome, "; ".join(faults)))
        shutil.rmtree(self.folder)

def main(kills: int, seconds: float = SECONDS) -> int:
    tally, done, end = Tally(), Counter(), time.perf_counter() + seconds
    with tempfile.TemporaryDirectory() as name:
        finish(Path(name) / "warm")  # what is slow only once: late imports
        for job, share in shares(kills).items():
            if not share:
                continue
            work = Work(JOBS[job], Path(name) / job, random.Random(job))
            work.fresh()
            while done[job] < share and time.perf_counter() < end:
                code = work.kill()
                done[job] += code is None
                if code is None and done[job] < share and work.rng.random() < 0.8:
                    continue  # killed again, before it is let finish
                work.end(tally, code)
                work.fresh()
            if work.hits:
                work.end(tally, None)
    print(f"{sum(done.values())} kills of {kills} asked for; 'clear error' counts those after which the work "
          "ended with the same bits and nothing left over")
    return tally.report("killed while at")
