"A run that is killed, at any time, continues and ends with the same bits."
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from gpvae.files import read_json, read_tensors, write_tensors
from gpvae.study.cli import main
from gpvae.study.config import RunSpec, resolve
from gpvae.study.run import run
from gpvae.training import load_checkpoint

KILLS = 10
EPOCHS = 30
SETTINGS = dict(epochs=EPOCHS, hidden=(50, 50), k=40, checkpoint_seconds=0.02, n_train=400)
# everything that is random, and running moments
SPEC = RunSpec(method="gpvae", z_dim=5, binarisation="stochastic", settings=SETTINGS)
COMMAND = ["--method", "gpvae", "--z_dim", "5", "--binarisation", "stochastic", "--device", "cpu",
           "--quiet", *(w for k, v in SETTINGS.items() for w in ("--set", f"{k}={v}"))] # the same run
NOT_OF_THE_RESULT = ("train_seconds", "epoch_seconds", "peak_mb", "commit")

def start(runs):
    "The run as a process of its own, forked, so that its time is the run's and not that of importing torch."
    process = multiprocessing.get_context("fork").Process(target=run, args=(SPEC, runs, "cpu", False))
    process.start()
    return process

def folder_of(runs): return runs / resolve(SPEC).id

def result(folder):
    "All that must be the same bits: metrics, the numbers of each image, weights, history."
    metrics = read_json(folder / "metrics.json")["row"]
    metrics = {k: v for k, v in metrics.items() if k not in NOT_OF_THE_RESULT}
    tensors, progress = load_checkpoint(folder / "checkpoint.safetensors")
    history = [{k: v for k, v in h.items() if k != "seconds"} for h in progress["history"]]
    images, _ = read_tensors(folder / "per_image.safetensors")
    return metrics, history, *({k: v.numpy().tobytes() for k, v in t.items()} for t in (images, tensors))

def phase(folder):
    "How far a run has come, from what it has written."
    if not folder.exists():
        return "before the folder"
    if (folder / "metrics.json").exists():
        return "finished"
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return "training, before the first checkpoint"
    n = len(load_checkpoint(path)[1]["history"])
    return "evaluating" if n == EPOCHS else f"training, checkpoint of epoch {n}"

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "An uninterrupted run: its result and its seconds."
    runs = tmp_path_factory.mktemp("whole")
    run(SPEC.change(epochs=1), runs, "cpu", bar=False) # what is slow only once: prepared images, late imports
    begin = time.perf_counter()
    process = start(runs)
    process.join()
    seconds = time.perf_counter() - begin
    assert process.exitcode == 0
    return result(folder_of(runs)), seconds

def killed(runs, seconds):
    "Start the run, kill it after so many seconds: whether it lived until then, and its seconds."
    begin, process = time.perf_counter(), start(runs)
    process.join(seconds)
    elapsed = time.perf_counter() - begin
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0, elapsed

def test_killed_runs_end_with_the_same_bits(whole, tmp_path, capsys):
    expected, seconds = whole
    name, hits = folder_of(tmp_path).name, []
    for i in range(KILLS):
        runs, at = tmp_path / str(i), seconds * (i + 0.5) / KILLS
        (alive, elapsed), found = killed(runs, at), phase(runs / name)
        hits.append((alive, found))
        with capsys.disabled():
            print(f"\n  killed after {at:5.2f} of {seconds:.2f} s, {'alive' if alive else 'done'}: {found}",
                  end="")
        if not alive:
            seconds = elapsed # the machine is less busy than while it was measured
        run(SPEC, runs, "cpu", bar=False)
        for part, other in zip(result(runs / name), expected, strict=True):
            assert part == other
    assert sum(alive for alive, _ in hits) >= 7
    # so that there was something to resume
    assert sum(found.startswith("training, checkpoint") for _, found in hits) >= 2

def test_the_killed_command_continues(whole, tmp_path):
    "The command itself, killed as soon as there is something to continue from."
    arguments = [*COMMAND, "--runs", str(tmp_path)]
    with subprocess.Popen([sys.executable, "-m", "gpvae.study.cli", "run", *arguments],
                          stdout=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("*/checkpoint.safetensors")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    folder = folder_of(tmp_path)
    assert process.returncode == -signal.SIGKILL
    assert phase(folder).startswith("training, checkpoint of epoch ")
    assert main(["run", *arguments]) == 0
    for part, other in zip(result(folder), whole[0], strict=True):
        assert part == other

def test_a_kill_while_a_file_is_written_is_harmless(whole, tmp_path, monkeypatch):
    folder = folder_of(tmp_path)
    def stop(*args, **kwargs): raise KeyboardInterrupt
    with monkeypatch.context() as m: # stopped in the evaluation, so that the checkpoint is there
        m.setattr("gpvae.study.run.evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            run(SPEC, tmp_path, "cpu", bar=False)
    part = (folder / "checkpoint.safetensors").read_bytes()[:5000]
    for pid in (4711, os.getpid()):
        for name in ("checkpoint.safetensors", "per_image.safetensors", "metrics.json", "config.json"):
            (folder / f".{pid}.{name}").write_bytes(part)
    run(SPEC, tmp_path, "cpu", bar=False)
    for part, other in zip(result(folder), whole[0], strict=True):
        assert part == other
    assert not list(folder.glob(".[0-9]*")) # what a killed process left is cleared away

def test_a_killed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, {"n": 1})
    def torn(target, content):
        with open(target, "wb") as f:
            f.write(content[:len(content) // 2])
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr("pathlib.Path.write_bytes", torn)
        with pytest.raises(KeyboardInterrupt):
            write_tensors(path, {"a": torch.zeros(3)}, {"n": 2})
    tensors, progress = load_checkpoint(path)
    assert progress == {"n": 1} and torch.equal(tensors["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
