"A study as a workflow: a job that dies stops no other and continues to the same bits."

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch

from gpvae.study.config import RunSpec, refit_of, resolve
from gpvae.study.run import TIMES, is_finished, open_run, run
from gpvae.study.studies import Study
from gpvae.training import load_checkpoint

SNAKEFILE = Path(__file__).resolve().parents[1] / "gpvae" / "study" / "Snakefile"
PLUGINS = ("snakemake", "snakemake_executor_plugin_slurm")
pytestmark = pytest.mark.skipif(not all(map(find_spec, PLUGINS)),
                                reason="Snakemake is not installed: pip install 'gpvae[cluster]' brings it")
TINY = dict(epochs=2, hidden=(8,), n_train=100, n_valid=20, n_test=60, k=2)


def tiny(method="vae", seed=0, **settings):
    "A short run."
    return RunSpec("digits", method, 2, seed, "smoke", settings=TINY | settings)


VAE, LONG, FAILS = tiny(), tiny("vlae", epochs=400, checkpoint_seconds=0.05), tiny(lr=1e18)
REFIT = refit_of(VAE, epochs=1)
EIGHT = {"plain": VAE, "other seed": tiny(seed=1), "process": tiny("gpvae"), "long": LONG, "fails": FAILS,
         "refit": REFIT, "judged anew": VAE.change(natural_step=0.5),
         "refit judged anew": REFIT.change(natural_step=0.5)}


def workflow(folder, *words, **config):
    "Call Snakemake on study.json in a folder."
    config = (dict(study="study.json", runs=folder / "runs", out=folder / "out", device="cpu", retries=0)
              | config)
    command = [sys.executable, "-m", "snakemake", "-s", SNAKEFILE, "--nolock", *words, "--config",
               *(f"{key}={value}" for key, value in config.items())]
    return subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)


def kill_once(folder, killed):
    "Kill the process of the long run as soon as it has a checkpoint."
    checkpoint = folder / "runs" / resolve(LONG).id / "checkpoint.safetensors"
    while not checkpoint.exists():
        time.sleep(0.01)
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "gpvae.study.cli" in words and any('"epochs": 400' in word for word in words):
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)


class Made:
    "The eight runs, by two calls of Snakemake."

    def __init__(self, folder):
        self.folder, self.killed = folder, []
        Study("eight", "Eight runs", tuple(EIGHT.values()), tuple(EIGHT)).write(folder / "study.json")
        watch = threading.Thread(target=kill_once, args=(folder, self.killed), daemon=True)
        watch.start()
        self.calls, self.finished = [], []
        for _ in range(2):
            self.calls.append(workflow(folder, "--cores", 2, "--keep-going").stderr)
            rows = {line: folder / "runs" / resolve(spec).id for line, spec in EIGHT.items()}
            done = {line: row for line, row in rows.items() if is_finished(row)}
            self.finished.append({line: (row / "metrics.json").stat().st_mtime_ns
                                  for line, row in done.items()})
            self.epochs = (self.epochs if self.finished[1:]
                           else len(load_checkpoint(rows["long"] / "checkpoint.safetensors")[1]["history"]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("cluster"))


def test_a_job_that_dies_stops_no_other(made):
    assert len(made.killed) == 1 and 0 < made.epochs < 400
    assert set(made.finished[0]) == set(EIGHT) - {"long", "fails"}
    log = (made.folder / "logs" / f"{resolve(FAILS).id}.txt").read_text()
    assert log.startswith("gpvae run: step ") and log.count("\n") == 1


def test_the_second_call_runs_only_what_is_missing(made):
    first, second = made.finished
    assert set(second) - set(first) == {"long"} and {line: second[line] for line in first} == first
    started = {line for line, spec in EIGHT.items() if f"wildcards: id={resolve(spec).id}" in made.calls[1]}
    assert started == {"long", "fails"}


def test_the_numbers_are_those_of_runs_one_after_the_other(made, tmp_path):
    "Bit for bit, of the killed run too."
    for line in made.finished[1]:
        alone = run(EIGHT[line], tmp_path, "cpu", bar=False)
        job = open_run(made.folder / "runs" / alone.config.id, EIGHT[line])
        unlike = {"train_seconds", "peak_mb", "commit", *TIMES}
        assert {k: v for k, v in job.row.items() if k not in unlike} == {k: v for k, v in alone.row.items()
                                                                         if k not in unlike}, line
        weights = [load_checkpoint(root / alone.config.trained.id / "checkpoint.safetensors")[0]
                   for root in (made.folder / "runs", tmp_path)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1]), line
        assert all((job.per_image[name] == values).all() for name, values in alone.per_image.items()), line


def test_the_page_is_a_job_after_all_runs(tmp_path):
    "Its rows have times."
    Study("two", "Two runs", (VAE, REFIT), ("vae", "refit"), reference="vae").write(tmp_path / "study.json")
    done = workflow(tmp_path, "--cores", 1)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "two.html").exists()
    assert "step_ms" in (tmp_path / "out" / "runs.csv").read_text()
    again = workflow(tmp_path, "--cores", 1)
    assert again.returncode == 0 and "Nothing to be done" in again.stderr


SLURM = r"""#!/bin/bash
# A SLURM of one machine: what is submitted is recorded, and run before the submission ends.
jobs=$(dirname "$0")/submitted
case $(basename "$0") in
  sbatch)
    id=$(($(ls "$jobs" | grep -c arguments) + 1))
    printf '%s\n' "$@" > "$jobs/$id.arguments"
    if [ $id = 1 ]; then echo FAILED > "$jobs/$id.state"; echo $id; exit; fi
    for word in "$@"; do case $word in --wrap=*) wrap=${word#--wrap=};; esac; done
    if sh -c "$wrap" > "$jobs/$id.said" 2>&1 < /dev/null
    then echo COMPLETED > "$jobs/$id.state"; else echo FAILED > "$jobs/$id.state"; fi
    echo $id;;
  srun) while [ "${1#-}" != "$1" ]; do shift; done; exec "$@";;
  sacct) for f in "$jobs"/*.state; do [ -e "$f" ] && echo "$(basename "$f" .state)|$(cat "$f")"; done; true;;
esac
"""


def test_slurm_is_asked_for_more_at_the_second_attempt(tmp_path, monkeypatch):
    "A SLURM of shell scripts, whose first job is lost; the profile says which partition, account and GPU."
    (tmp_path / "slurm" / "submitted").mkdir(parents=True)
    for name in ("sbatch", "srun", "sacct", "squeue", "scancel", "sinfo", "scontrol", "sacctmgr", "sshare"):
        (tmp_path / "slurm" / name).write_text(SLURM)
        (tmp_path / "slurm" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}:{os.environ['PATH']}")
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").write_text(
        "executor: slurm\njobs: 10\nslurm-init-seconds-before-status-checks: 1\nlatency-wait: 5\n"
        "default-resources:\n  slurm_account: vision\n  slurm_partition: long\n  gpu: 1\n"
    )
    Study("one", "One run", (VAE,)).write(tmp_path / "study.json")
    done = workflow(tmp_path, "--profile", "profile", retries=1, mem_mb=3000, minutes=45)
    asked = [(tmp_path / "slurm" / "submitted" / f"{i}.arguments").read_text().split("\n") for i in (1, 2, 3)]
    shown = [[words[words.index(key) + 1] for key in ("--mem", "-t", "-A", "-p")] for words in asked]
    assert shown == [
        ["3000", "45", "vision", "long"],
        ["6000", "90", "vision", "long"],
        ["3000", "45", "vision", "long"],
    ], done.stderr  # the run, again, the page
    assert all("--gpus=1" in words for words in asked)
    assert done.returncode == 0 and (tmp_path / "out" / "one.html").exists(), done.stderr


def test_a_finished_run_has_no_job_and_a_lost_parent_has_one(tmp_path):
    study = Study("two", "Two runs", (replace(VAE, seed=5), REFIT), ("vae", "refit"))
    study.write(tmp_path / "study.json")
    run(study.specs[0], tmp_path / "runs", "cpu", bar=False)
    shown = workflow(tmp_path, "--cores", 1, "--dry-run").stdout
    ids = {name: resolve(spec).id
           for name, spec in dict(done=study.specs[0], parent=VAE, refit=REFIT).items()}
    assert [f"id={ids[name]}" in shown for name in ("done", "parent", "refit")] == [False, True, True]
