"Grids as workflows: a job that dies stops no other and continues to the same bits, parents come first, SLURM is asked for what a job needs, and thousands of cells are planned at once."
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from gpvae.checks import InputError
from gpvae.study import cluster, reproduce as module
from gpvae.study.catalogue import STUDIES
from gpvae.study.cluster import _End, _Job, _Workflow
from gpvae.study.commands import reproduce_command, run_command
from gpvae.study.run import RunResult, is_finished, run
from gpvae.study.spec import RunSpec, refit_of
from gpvae.study.store import Store, select
from gpvae.train import load_checkpoint
from test_store import made_up

needs_snakemake = pytest.mark.skipif(find_spec("snakemake") is None or find_spec("snakemake_executor_plugin_slurm") is None,
                                     reason="Snakemake is not installed: pip install 'gpvae[cluster]' brings it")
TINY = dict(epochs=2, hidden=(8,), n_valid=20, n_test=60, k=2)

def tiny(method="vae", seed=0, **settings): return RunSpec("digits", method, 2, seed, "smoke", n_train=100, settings=tuple((TINY | settings).items()))

def profile(folder, **options):
    "A profile of Snakemake."
    folder.mkdir()
    (folder / "config.yaml").write_text("".join(f"{k.replace('_', '-')}: {v}\n" for k, v in options.items()))
    return folder

# --- eight runs, of which one is killed and one fails -------------------------------------------------------------------------------------------

VAE, STEP = tiny(), ("natural_step", 0.5)
LONG = tiny("vlae", epochs=400, checkpoint_seconds=0.05)
FAILS = tiny(lr=1e30)
REFIT = refit_of(VAE, epochs=1)
EIGHT = {"plain": VAE, "other seed": tiny(seed=1), "process": tiny("gpvae"), "long": LONG, "fails": FAILS, "refit": REFIT, "anew": replace(VAE, settings=(*VAE.settings, STEP)),
         "refit anew": replace(REFIT, settings=(*REFIT.settings, STEP))}

def kill_once(spec, runs, killed):
    "Kill the process of a run as soon as it has a checkpoint."
    name = module._Names()(spec)
    while not (runs / name / "checkpoint.safetensors").exists(): time.sleep(0.01)
    words = [f"{k}={v!r}" for k, v in spec.settings]
    for p in psutil.Process().children(recursive=True):
        try: line = p.cmdline()
        except psutil.Error: continue
        if line[0] == sys.executable and line[1:4] == ["-m", "gpvae.study.commands", "run"] and all(w in line for w in words):
            p.send_signal(signal.SIGKILL)
            killed.append(name)

class Made:
    "The eight runs, made by two calls of the command."
    def __init__(self, folder):
        self.folder, self.runs, self.out, self.killed, self.names = folder, folder / "runs", folder / "out", [], module._Names()
        self.profile = profile(folder / "profile", retries=0)

    def call(self):
        "What the command says."
        try: return module.train_study("sizes", 2, self.runs, self.out, "cpu", bar=False, executor="local", profile=self.profile)
        except InputError as e: return str(e)

    def folder_of(self, spec): return self.runs / self.names(spec)
    def logs(self): return {p.stem for p in (self.runs / ".jobs" / "sizes" / "logs").glob("*.txt")}
    def rows(self): return {p.parent.name: p.stat().st_mtime_ns for p in self.runs.glob("*/metrics.json")}

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    m, study = Made(tmp_path_factory.mktemp("cluster")), replace(STUDIES["sizes"], specs=tuple(EIGHT.values()), lines=tuple(EIGHT))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STUDIES, "sizes", study)
        watch = threading.Thread(target=kill_once, args=(LONG, m.runs, m.killed), daemon=True)
        watch.start()
        m.first, m.first_rows, m.first_logs = m.call(), m.rows(), m.logs()
        watch.join(1)
        m.epochs = len(load_checkpoint(m.folder_of(LONG) / "checkpoint.safetensors")[1]["history"])
        patch.setattr(module._There, "time", lambda self, done: done) # once is enough
        m.second, m.second_rows, m.second_logs = m.call(), m.rows(), m.logs()
    return m

@needs_snakemake
def test_a_job_that_dies_stops_no_other(made):
    assert made.killed == [made.names(LONG)]
    assert "vlae seed 0 ended with status 137" in made.first and "vae seed 0 ended with status 2: gpvae_run: step " in made.first
    assert 0 < made.epochs < 400 # of the killed run
    assert set(made.first_rows) == {made.names(s) for s in EIGHT.values()} - {made.names(LONG), made.names(FAILS)}

@needs_snakemake
def test_the_second_call_runs_what_is_missing_alone(made):
    assert made.first_logs == {made.names(s) for s in EIGHT.values()} and made.second_logs == {made.names(LONG), made.names(FAILS)}
    assert {k: made.second_rows[k] for k in made.first_rows} == made.first_rows and set(made.second_rows) - set(made.first_rows) == {made.names(LONG)}
    assert made.second.startswith("vae seed 0 ended with status 2: ") and "vlae" not in made.second

@needs_snakemake
def test_the_numbers_are_those_of_runs_one_after_the_other(made, tmp_path):
    "Bit for bit, of the killed run too."
    times = {"train_seconds", "epoch_seconds", "peak_mb", "infer_ms_batch", "infer_ms_one", "step_ms", "commit"}
    for line, spec in EIGHT.items():
        if line == "fails": continue
        alone, job = run(spec, tmp_path, "cpu", bar=False), RunResult.open(made.folder_of(spec), spec)
        assert {k: torch.equal(v, alone.per_image[k]) for k, v in job.per_image.items()} == dict.fromkeys(alone.per_image, True), line
        same = lambda r: {k: v for k, v in r.metrics.items() if k not in times}
        assert same(job) == same(alone), line

@needs_snakemake
def test_rows_are_kept_with_times_of_a_pass_of_its_own(made):
    rows = Store(made.out).runs()
    timed = rows[rows["method"] != "vlae"]
    assert len(rows) == 7 and len(timed) == 6 and timed[["infer_ms_batch", "infer_ms_one", "step_ms"]].notna().all(axis=None)
    assert [p.name for p in (made.runs / ".jobs" / "sizes" / "timing" / "done").iterdir()] == ["timing"] # by one job of all

# --- the graph ----------------------------------------------------------------------------------------------------------------------------------

def place(runs, executor="local", device="cpu", **more): return module._place("grid", runs, None, device, False, executor, None)

def graph(runs, specs, **more):
    "The jobs of specifications, by what they run."
    there, names = place(runs, **more), module._Names()
    jobs = there._jobs(there._missing(specs, names), names, Store(runs / "out"))
    return jobs, names

@needs_snakemake
def test_parents_come_first_though_nobody_asked_for_them(tmp_path):
    refit, anew = EIGHT["refit"], EIGHT["refit anew"]
    jobs, names = graph(tmp_path, [anew, tiny("gpvae")])
    assert [(j.name, j.after) for j in jobs] == [(names(VAE), []), (names(refit), [names(VAE)]), (names(anew), [names(refit)]), (names(tiny("gpvae")), [])]

@needs_snakemake
def test_what_is_finished_has_no_job_and_needs_none_before_it(tmp_path):
    refit, anew, names = EIGHT["refit"], EIGHT["refit anew"], module._Names()
    for name in ("spec.json", "metrics.json", "per_image.safetensors"):
        (tmp_path / names(refit)).mkdir(exist_ok=True)
        (tmp_path / names(refit) / name).touch()
    assert [(j.name, j.after) for j in graph(tmp_path, [refit, anew])[0]] == [(names(anew), [])]

@needs_snakemake
def test_what_comes_after_a_failure_is_named(tmp_path):
    jobs = [_Job("first", [sys.executable, "-c", "raise SystemExit('it broke')"], [], 100, 1), _Job("second", ["true"], ["first"], 100, 1), _Job("third", ["true"], [], 100, 1)]
    failed = _Workflow(tmp_path / "jobs", "local", profile(tmp_path / "p", retries=0), 1, 1, {}, False).run(jobs)
    assert failed == {"first": _End(1, "it broke"), "second": _End(None, "it was not started, because what comes before it failed")}

# --- what jobs ask for --------------------------------------------------------------------------------------------------------------------------

def asking(gpu=False, **row):
    usual = dict(dataset="digits", budget="smoke", method="vae", z_dim=2, settings="", n_train=100, epochs=2, train_seconds=600., peak_mb=4000.)
    return module._Asking(pd.DataFrame([usual | row]), gpu)

def test_jobs_ask_for_more_than_is_expected():
    a = asking(settings="epochs=2 hidden=(8,) k=2 n_test=60 n_valid=20")
    assert (a.mem_mb(VAE), a.minutes(VAE)) == (6000, 50) # 1.5 × 4000 MB; 30 + 2 × 10 minutes
    assert a.minutes(tiny("gpvae")) == 30 + 46           # a guess: 4 × 1.13 × 10 minutes
    assert asking(peak_mb=100.).mem_mb(VAE) == 2000 and asking(gpu=True, peak_mb=100.).mem_mb(VAE) == 8000 # at least

def test_jobs_of_which_nothing_is_known_ask_for_a_day():
    a = module._Asking(pd.DataFrame(), False)
    assert (a.mem_mb(VAE), a.minutes(VAE)) == (2000, 24 * 60)

SLURM = r"""#!/bin/bash
# A SLURM of one machine: what is submitted is recorded, and run before the submission ends.
jobs=$(dirname "$0")/submitted
case $(basename "$0") in
  sbatch)
    id=$(($(ls "$jobs" | grep -c arguments) + 1))
    printf '%s\n' "$@" > "$jobs/$id.arguments"
    for word in "$@"; do case $word in --wrap=*) wrap=${word#--wrap=};; esac; done
    if sh -c "$wrap" > "$jobs/$id.said" 2>&1 < /dev/null; then echo COMPLETED > "$jobs/$id.state"; else echo FAILED > "$jobs/$id.state"; fi
    echo $id;;
  srun) while [ "${1#-}" != "$1" ]; do shift; done; exec "$@";;
  sacct) for f in "$jobs"/*.state; do [ -e "$f" ] && echo "$(basename "$f" .state)|$(cat "$f")"; done; true;;
esac
"""

@pytest.fixture
def slurm(tmp_path, monkeypatch):
    "Programs of SLURM on PATH; the folder of what they are asked."
    folder = tmp_path / "slurm"
    (folder / "submitted").mkdir(parents=True)
    for name in ("sbatch", "srun", "sacct", "squeue", "scancel", "sinfo", "scontrol", "sacctmgr", "sshare"):
        (folder / name).write_text(SLURM)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "submitted"

@needs_snakemake
def test_slurm_is_asked_for_a_gpu_memory_and_minutes(slurm, tmp_path):
    "A job that fails is tried again with twice as much."
    options = profile(tmp_path / "p", retries=1, slurm_init_seconds_before_status_checks=1, latency_wait=5, default_resources='{slurm_account: "vision", slurm_partition: "long"}')
    made = tmp_path / "made"
    twice = ["bash", "-c", f"test -e '{made}' || {{ touch '{made}'; exit 1; }}"]
    there = place(tmp_path / "runs", "slurm", "cuda")
    assert there.workflow._replace(profile=options).run([_Job("first", twice, [], 3000, 45)]) == {}
    asked = [(slurm / f"{i}.arguments").read_text().split("\n") for i in (1, 2)]
    found = [[words[words.index(k) + 1] for k in ("--mem", "-t", "-A", "-p")] for words in asked]
    assert found == [["3000", "45", "vision", "long"], ["6000", "90", "vision", "long"]] and len(list(slurm.glob("*.arguments"))) == 2
    assert all("--gpus=1" in words and "--cpus-per-task=1" in words for words in asked)

@needs_snakemake
def test_a_cluster_gives_no_gpu_unless_it_is_asked(slurm, tmp_path):
    assert place(tmp_path, "slurm", None).workflow.resources == place(tmp_path, "slurm", "cpu").workflow.resources == {}
    there = place(tmp_path, "slurm", "cuda")
    there.check([VAE]) # though this machine has none
    assert there.workflow.resources == {"gpu": 1} and there.side == 100 and place(tmp_path).side == 2

@needs_snakemake
def test_a_submission_that_fails_says_why(slurm, tmp_path):
    (slurm.parent / "sbatch").write_text("#!/bin/sh\necho 'no such partition' >&2\nexit 1\n")
    options = profile(tmp_path / "p", retries=0, slurm_init_seconds_before_status_checks=1, default_resources='{slurm_account: "vision", slurm_partition: "none"}')
    failed = place(tmp_path / "runs", "slurm").workflow._replace(profile=options).run([_Job("first", ["true"], [], 100, 1)])
    assert failed == {"first": _End(None, "SLURM sbatch failed. The error message was 'no such partition'.")}

@needs_snakemake
def test_a_profile_that_snakemake_refuses_is_one_line(tmp_path):
    with pytest.raises(InputError, match="Snakemake ended with status [12] before any job, and said: .*partytion.*workflow.txt has all of it") as e:
        place(tmp_path).workflow._replace(profile=profile(tmp_path / "p", partytion="gpu")).run([_Job("first", ["true"], [], 100, 1)])
    assert "\n" not in str(e.value)

# --- the command --------------------------------------------------------------------------------------------------------------------------------

WORDS = ["--methods", "vae", "gpvae", "--seeds", "1", "--z_dims", "2", "--n_train", "100", *(w for k, v in TINY.items() for w in ("--set", f"{k}={v}")), "--device", "cpu"]

WRONG = {
    "executor":            (["--executor", "lokal"], "executor 'lokal' is unknown: did you mean 'local'? choose one of local, slurm"),
    "not on a login node": (["--executor", "slurm"], "executor slurm: sbatch is not on PATH: call this on a login node"),
    "no profile":          (["--executor", "local", "--profile", "/no/where"], "profile /no/where: there is no such folder with a file config.yaml"),
    "profile alone":       (["--profile", "."], "profile .: it says how an executor works: pass --executor, too"),
    "no jobs":             (["--executor", "local", "--jobs", "0"], "jobs is 0: at least one run must be allowed"),
    "device":              (["--executor", "local", "--device", "cudo"], "device 'cudo' is unknown: did you mean 'cuda'?"),
    "setting":             (["--executor", "local", "--set", "epoch=3"], "'epoch' is unknown: did you mean 'epochs'?"),
}

@needs_snakemake
@pytest.mark.parametrize("study", [[], ["--study", "sizes"]], ids=["page", "study"])
@pytest.mark.parametrize("plan", [[], ["--plan"]], ids=["start", "plan"])
@pytest.mark.parametrize("args, message", WRONG.values(), ids=WRONG)
def test_wrong_input_is_refused_in_one_line(capsys, tmp_path, runs, args, message, plan, study):
    assert reproduce_command([*args, *plan, *study, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.startswith("gpvae_reproduce: ") and err.count("\n") == 1 and not list(runs.rglob("*"))

def test_without_snakemake_one_line_says_how_to_install_it(capsys, tmp_path, runs, monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    assert reproduce_command(["--executor", "local", "--plan", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "gpvae_reproduce: executor local: Snakemake is not installed: pip install 'gpvae[cluster]' brings it\n"

@needs_snakemake
def test_a_plan_says_what_jobs_would_ask_for_and_starts_nothing(capsys, tmp_path, slurm, monkeypatch):
    monkeypatch.setattr(_Workflow, "run", lambda *args: pytest.fail("a workflow has started"))
    words = [*WORDS, "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), "--plan", "--executor"]
    for executor, device, said in (("local", "cpu", "2 at a time"), ("slurm", "cuda", "2 jobs: 8,000 MB, 1,440 minutes and a GPU each")):
        assert reproduce_command([*words, executor, "--device", device]) == 0
        assert said in capsys.readouterr().out
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()

@needs_snakemake
def test_a_job_that_fails_stands_on_the_page(capsys, tmp_path, monkeypatch):
    said = "SLURM status is OUT_OF_MEMORY"
    def one_fails(self, jobs):
        for job in jobs[:1]: assert run_command(job.command[4:-1]) == 0
        return {job.name: _End(None, said) for job in jobs[1:]}
    monkeypatch.setattr(_Workflow, "run", one_fails)
    monkeypatch.setattr(module._There, "time", lambda self, done: done)
    assert reproduce_command([*WORDS, "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), "--executor", "local", "--quiet"]) == 2
    out, err = capsys.readouterr()
    page, = (tmp_path / "out").glob("*.ipynb")
    assert f"failed: seed 0, {said}" in out and f"failed: seed 0, {said}" in page.read_text() and f"gpvae seed 0 failed: {said}" in err and len(Store(tmp_path / "out").runs()) == 1

def alive(process):
    "Whether a process still works: one that is dead but not waited for does not."
    try: return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False

def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)

@needs_snakemake
def test_no_job_outlives_a_command_that_is_killed(tmp_path):
    words = [*WORDS[3:], "--methods", "vlae", "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), "--executor", "local", "--quiet"]
    words[words.index("epochs=2")] = "epochs=100000"
    with subprocess.Popen([sys.executable, "-m", "gpvae.study.commands", "reproduce", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: process.poll() is not None or list((tmp_path / "runs").glob("*/checkpoint.safetensors")), 120)
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(started) >= 3 # Snakemake, the shell, the run
    wait_for(lambda: not any(map(alive, started)), 120)
    log, = (tmp_path / "runs").glob(".jobs/*/logs/*.txt")
    said = log.read_text() # once, under load, the status alone was there; why is not known
    assert "the same command continues" in said or "status 143" in said

# --- thousands of cells -------------------------------------------------------------------------------------------------------------------------

class Counted(pd.DataFrame):
    "Rows that count how often a column is read."
    reads = 0

    def __getitem__(self, key):
        if isinstance(key, str): Counted.reads += 1
        return super().__getitem__(key)

def many(n):
    "Rows of so many runs, of which a query of the first ones finds each."
    one = made_up().metrics
    return Counted(pd.DataFrame([one | dict(seed=i, spec=f"{i:012x}", train_seconds=5., epochs=10) for i in range(n)]))

@pytest.mark.parametrize("specs", [1, 50])
def test_a_query_reads_every_column_once_however_many_specifications(specs):
    rows, Counted.reads = many(100), 0
    assert select(rows, [RunSpec("toy", "vae", 2, s, "cpu") for s in range(specs)])["seed"].tolist() == list(range(specs))
    assert Counted.reads <= 20

def test_a_plan_reads_the_rows_of_each_method_once(monkeypatch):
    "Seconds of 600 runs of one method, by rows that are looked through once for each number of latent dimensions."
    rows, calls = many(50), []
    nearest = module._Expected._nearest
    monkeypatch.setattr(module._Expected, "_nearest", lambda self, *args: calls.append(args) or nearest(self, *args))
    Counted.reads, a = 0, module._Asking(rows, False)
    for spec in [RunSpec("toy", "vae", z, s, "cpu", n_train=10_000) for z in (2, 3, 4) for s in range(200)]: assert a.minutes(spec) > 30 and a.mem_mb(spec) == 2000
    assert len(calls) == 3 and Counted.reads <= 40
