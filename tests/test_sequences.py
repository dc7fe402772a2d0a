"Commands of the README in a clone, one after the other: nothing that is committed changes."

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--z_dims 2 --set epochs=2 --set hidden='(8,)' --set n_train=100 --set n_valid=20 --set n_test=60 "
        "--set k=2 --device cpu --quiet")
GAP = "--test 8 --train 4 --valid 8 --temperatures 3 --chains 2"
SEQUENCE = [["reproduce", f"ARGS={TINY}", "METHODS=vae"],
            ["gap", f"ARGS={TINY} {GAP}", "METHODS=vae"],
            ["sync"]]

@pytest.fixture
def clone(tmp_path):
    "A clone of what is committed, and an environment whose commands are those of its package."
    cloned = subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], capture_output=True)
    if cloned.returncode:
        pytest.skip("this is no git checkout")
    commands = tmp_path / "venv" / "bin"
    commands.mkdir(parents=True)
    for name, words in {"gpvae": "-P -m gpvae.study.cli", "python": ""}.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (commands / name).chmod(0o755)
    return tmp_path / "clone"

def make(clone, *words):
    "Call make; what it prints."
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(clone), "GPVAE_RUNS": str(clone.parent / "runs")}
    command = ["make", "--no-print-directory", "-o", "setup", "-o", "data-mnist",
               f"VENV={clone.parent / 'venv'}"]
    done = subprocess.run([*command, *words], cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"make {words}: {done.stdout}{done.stderr}"
    return done.stdout

def status(clone):
    "What git sees that is not committed."
    return subprocess.run(["git", "-C", clone, "status", "--porcelain"], capture_output=True,
                          text=True).stdout

def test_a_sequence_of_commands_changes_nothing_that_is_committed(clone):
    (clone / "nbs" / "mine.ipynb").write_text(
        '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    )
    for words in SEQUENCE:
        printed = make(clone, *words)
        assert status(clone) == "?? nbs/mine.ipynb\n", words
        if words[0] != "sync":
            page = Path(printed.splitlines()[-1])
            assert page.parent == clone / "results" and page.suffix == ".html" and page.exists()
            assert page.name.startswith("gap_") == (words[0] == "gap")
