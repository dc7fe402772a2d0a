"""One thread, checked shapes, and the folders that tests write to. A mutated copy of the package, first on
PYTHONPATH, is what gets imported and checked."""
import os
for name, value in dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE").items():
    os.environ.setdefault(name, value)

import quick # noqa: F401
import checker
from jaxtyping import install_import_hook
install_import_hook("gpvae", "checker.checked")

import pytest
import torch
torch.set_num_threads(1)

def pytest_runtest_setup():
    "The first calls of every test are checked."
    checker.begin()

def needs_set(name):
    """Mark a test that reads the image set `name`: it is skipped, with the reason, where the set is missing;
    nothing is downloaded."""
    from gpvae.data import data_root
    path = data_root() / f"{name}.npz"
    return pytest.mark.skipif(not path.exists(), reason=f"the image set {name} is missing: {path}")

@pytest.fixture
def runs(tmp_path, monkeypatch):
    "An empty folder for runs, also for the commands that a test starts."
    folder = tmp_path / "runs"
    monkeypatch.setenv("GPVAE_RUNS", str(folder))
    return folder
