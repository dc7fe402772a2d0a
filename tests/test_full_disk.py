"A disk that is full: one line and exit status 2 wherever a file no longer fits, and a rerun goes on once there is room."
import os
import re
import resource
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
import torch

from gpvae.checks import InputError
from gpvae.data import load
from gpvae.files import read_tensors, write_arrays, write_json, write_tensors
from gpvae.study import reproduce as module
from gpvae.study.commands import reproduce_command
from gpvae.study.run import run
from gpvae.study.spec import BUDGETS, RunSpec, Settings
from gpvae.study.store import Store

@contextmanager
def room(size):
    "No file can grow beyond so many bytes, in this process and in those that it starts: a write fails as on a full disk, with EFBIG."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) in (signal.SIG_IGN, None) # Python ignores it: an error, not an end
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

WRITERS = {
    "json": lambda path, n: write_json(path, {"text": "x" * n}),
    "tensors": lambda path, n: write_tensors(path, {"a": torch.ones(n)}, {"n": n}),
    "arrays": lambda path, n: write_arrays(path, {"a": np.random.default_rng(0).random(n)}),
}

@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_does_not_fit_is_one_line_and_the_old_one_stays(kind, tmp_path):
    path, write = tmp_path / "file", WRITERS[kind]
    write(path, 10)
    old = path.read_bytes()
    with room(3000), pytest.raises(InputError) as e: write(path, 5000)
    assert "\n" not in str(e.value) and str(e.value).startswith(f"{path} cannot be written (") and "File too large" in str(e.value) and "make room" in str(e.value)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["file"]

@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("kind", ["json", "arrays"])
def test_a_device_without_room_is_one_line(kind, tmp_path):
    "What the kernel says of a full disk, ENOSPC, from the device that is always full."
    (tmp_path / f".{os.getpid()}.file").symlink_to("/dev/full") # the temporary name of a write
    with pytest.raises(InputError, match="No space left on device.: make room"): WRITERS[kind](tmp_path / "file", 5000)
    assert not list(tmp_path.iterdir())

# --- a page, from images to rendering -------------------------------------------------------------------------------------------------------

SHORT = dict(n_train=100, n_valid=20, n_test=60, hidden=(8,), epochs=2, k=5, kl_warmup=1)

@pytest.fixture
def command(runs, tmp_path, monkeypatch, capsys):
    "The command that makes a short page, whose cells are not executed, with so much room: its exit status, and what it says."
    start = module._start
    monkeypatch.setitem(BUDGETS, "smoke", Settings(**SHORT))
    monkeypatch.setattr(module, "_start", lambda spec, *args: start(replace(spec, settings=tuple(SHORT.items())), *args))
    monkeypatch.setattr(papermill, "execute_notebook", lambda path, *args, **kwargs: nbformat.read(path, as_version=4))
    monkeypatch.setenv("GPVAE_DATA", str(tmp_path / "data"))
    def call(out, size=resource.RLIM_INFINITY):
        capsys.readouterr()
        with room(size): status = reproduce_command(["--methods", "vae", "--quiet", "--device", "cpu", "--out", str(tmp_path / out)])
        return status, capsys.readouterr().err
    return call

def left_over(folder): return [p for p in folder.rglob("*") if p.name.startswith((".", "tmp")) and p.name != ".lock"]

def test_a_page_goes_on_where_the_disk_was_full(command, runs, tmp_path):
    def full(out, size, place):
        status, said = command(out, size)
        assert status == 2 and said.count("\n") == 1 and said.startswith("gpvae_reproduce: "), said
        assert re.search(f"{place} cannot be written \\(", said) and not left_over(tmp_path), said
    full("a", 20_000, "data/prepared")
    load("digits")
    full("a", 2000, "checkpoint.safetensors")
    assert not list(runs.glob("*/metrics.json")) and not (tmp_path / "a" / "runs.csv").exists()
    assert command("a")[0] == 0 # there is room, and it goes on
    folder, other = next(runs.iterdir()), run(RunSpec("digits", "vae", z_dim=10, settings=tuple(SHORT.items())), tmp_path / "undisturbed", "cpu", bar=False)
    a, b = (read_tensors(f / "checkpoint.safetensors")[0] for f in (folder, other.folder))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    full("b", 800, "b/images/.*.npz") # a finished run, and a store without room
    full("b", 5000, "b/digits.ipynb")
    assert command("b")[0] == 0
    assert (tmp_path / "a" / "runs.csv").read_bytes() == (tmp_path / "b" / "runs.csv").read_bytes() and (tmp_path / "b" / "digits.ipynb").exists()
    assert len(Store(tmp_path / "b").runs()) == 1
