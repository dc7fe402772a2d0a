"""The store: two processes that keep at once lose nothing, damage is one line, a query finds the rows that
were meant."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpvae.checks import InputError
from gpvae.data import load
from gpvae.study import store as module
from gpvae.study.config import RunSpec, resolve
from gpvae.study.run import RunResult, describe_spec
from gpvae.study.store import N_IMAGES, Store, check_comparable
from gpvae.study.studies import Study

DIGITS = load("digits")
ROW = dict(dataset="digits", z_dim=2, likelihood="bernoulli", n_train=1300, n_test=297, binarisation="fixed",
           k=100, protocol=4, checksum="abc", machine="cpu", weights=None)


def made_up(method="vae", seed=0, level=-90., n=50, modes=(), **more):
    "A finished run whose every image has the same IWAE."
    spec = RunSpec("digits", method, 2, seed)
    iwae = np.full(n, level, np.float32)
    row = ROW | describe_spec(spec) | dict(run=f"{method}{seed}", method=method, seed=seed, elbo=level - 1,
                                           iwae=level)
    pictures = {k: np.zeros((3, 1, 8, 8), np.uint8) for k in ("samples", "images", "reconstructions")}
    history = [dict(elbo=float(e), valid_elbo=float(e), seconds=1.) for e in range(3)]
    mode_rows = [dict(run=row["run"], mode=mode, elbo=level) for mode in modes]
    return RunResult(Path(), resolve(spec, DIGITS), row | more, mode_rows,
                     {"iwae": iwae, "elbo": iwae - 1, "ess": iwae}, history, pictures)


def test_a_new_row_replaces_its_own_and_no_other(tmp_path):
    store = Store(tmp_path)
    store.keep([made_up(seed=s, level=-90. - s, n=N_IMAGES + 1000, modes=("mean", "mixture"))
                for s in range(2)])
    store.keep([made_up(seed=1, level=-80., n=N_IMAGES + 1000, modes=("mean", "mixture"))])
    rows, modes = store.table("runs"), store.table("modes")
    assert rows.set_index("seed")["iwae"].to_dict() == {0: -90., 1: -80.} and len(modes) == 4
    assert modes.set_index(["run", "mode"]).loc[("vae1", "mean"), "elbo"] == -80
    arrays = {run: store.arrays(run)["iwae"] for run in rows["run"]}
    assert {run: (len(v), v[0]) for run, v in arrays.items()} == {"vae0": (N_IMAGES, -90.),
                                                                  "vae1": (N_IMAGES, -80.)}


def test_pictures_are_kept_of_the_runs_that_a_page_shows(tmp_path):
    store = Store(tmp_path)
    store.keep([made_up(), made_up(seed=1)], pictured=["vae0"])
    assert "samples" in store.arrays("vae0") and "samples" not in store.arrays("vae1")
    assert store.history("vae1")["valid_elbo"].tolist() == [0, 1, 2]
    assert "seconds" not in store.history("vae1")
    assert store.arrays("unknown") == {} and store.history("unknown").empty


@pytest.mark.parametrize("level", [-90.003, 511.9, -3000.1, np.inf, np.nan])
def test_numbers_of_images_are_rounded_to_64ths_whatever_their_size(tmp_path, level):
    store = Store(tmp_path)
    store.keep([made_up(level=level)])
    np.testing.assert_allclose(store.arrays("vae0")["iwae"], level, atol=1 / 128, rtol=1e-6)


def test_an_empty_store_has_no_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("GPVAE_RESULTS", str(tmp_path / "nothing"))
    store = Store()
    assert store.folder == tmp_path / "nothing" and not any(len(store.table(t)) for t in module.KEYS)
    assert not store.folder.exists()  # reading makes nothing
    monkeypatch.delenv("GPVAE_RESULTS")
    monkeypatch.chdir(tmp_path)
    assert Store().folder == tmp_path / "results"


def test_gaps_are_kept_once(tmp_path):
    store = Store(tmp_path)
    store.keep_gaps({"run": "vae0", "sandwich": 0.1},
                    {"test_elbo": np.float32([1, 2]), "test_old": np.float32([1])})
    store.keep_gaps({"run": "vae0", "sandwich": 0.2}, {"test_elbo": np.float32([3, 4])})
    assert store.table("gaps")["sandwich"].tolist() == [0.2]
    assert {k: v.tolist() for k, v in store.arrays("vae0", "gaps").items()} == {"test_elbo": [3, 4]}


SAVER = """
import sys
sys.path.insert(0, {tests!r})
from test_store import Store, made_up
store, name = Store({folder!r}), sys.argv[1]
(store.folder / name).touch()
while len(list(store.folder.glob("ready-*"))) < 2: pass
for i in range(20): store.keep([made_up(name.removeprefix("ready-"), i, modes=("mean",))])
"""


def test_two_processes_that_keep_at_once_lose_nothing(tmp_path):
    code = SAVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    both = [subprocess.Popen([sys.executable, "-c", code, f"ready-{m}"], cwd=tmp_path)
            for m in ("vae", "gpvae")]
    assert [p.wait(300) for p in both] == [0, 0]
    store = Store(tmp_path)
    assert len(store.table("runs")) == 40 == len(store.table("modes"))
    assert all(len(store.arrays(run)["iwae"]) == 50 for run in store.table("runs")["run"])
    assert [p for p in tmp_path.rglob(".*") if p.name != ".lock"] == []


@pytest.mark.parametrize("name", ["runs.csv", "SHA256SUMS", "runs/vae0.npz"])
@pytest.mark.parametrize("damage", ["flip", "cut", "zero", "empty", "lost"])
def test_damage_is_one_line(tmp_path, name, damage):
    store, path = Store(tmp_path), tmp_path / name
    store.keep([made_up(seed=s) for s in range(3)])
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "flip":
        content[middle] ^= 1
    if damage == "zero":
        content[middle:middle + 16] = bytes(16)
    path.write_bytes(content[:middle] if damage == "cut" else b"" if damage == "empty" else content)
    if damage == "lost":
        path.unlink()
    if name.endswith("npz"):
        if damage == "lost":
            assert store.arrays("vae0") == {}
            return
        try:
            assert (store.arrays("vae0")["iwae"] == -90).all()  # a flip in what nobody reads, such as a time
        except InputError as e:
            assert "\n" not in str(e) and "vae0.npz" in str(e)
        return
    for use in (lambda: store.table("runs"), lambda: store.keep([made_up(seed=9)])):
        with pytest.raises(InputError, match="runs.csv") as e:  # nothing is kept on top of damage
            use()
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_process_killed_while_it_keeps_leaves_a_table_that_can_be_read(tmp_path, monkeypatch, at):
    store = Store(tmp_path)
    store.keep([made_up()])
    calls, write = [], module.write_atomically

    def until(path, how):
        calls.append(path)
        if len(calls) == at:
            (path.parent / f".1.{path.name}").touch()  # what a kill leaves
            raise KeyboardInterrupt
        write(path, how)

    monkeypatch.setattr(module, "write_atomically", until)
    with pytest.raises(KeyboardInterrupt):
        store.keep([made_up(seed=1)])
    monkeypatch.undo()
    store.keep([made_up(seed=1)])
    assert len(store.table("runs")) == 2
    assert [p for p in tmp_path.rglob(".*") if p.name != ".lock"] == []


def test_rows_that_no_table_may_mix_are_refused_by_name(tmp_path):
    store = Store(tmp_path)
    store.keep([made_up(), made_up(seed=1, n_train=10)])
    check_comparable(store.table("runs"), but=("n_train",))
    with pytest.raises(InputError, match="n_train 10 and n_train 1300|n_train 1300 and n_train 10"):
        check_comparable(store.table("runs"))


def test_results_follow_the_order_of_the_specifications_and_the_latest_protocol(tmp_path):
    store = Store(tmp_path)
    store.keep([made_up(seed=s, protocol=3 if s == 1 else 4) for s in range(3)] + [made_up("gpvae", 5)])
    specs = tuple(RunSpec("digits", "vae", 2, s) for s in (2, 1, 7, 0))
    results = Study("toy", "Toy", specs).results(store)
    assert results.rows["seed"].tolist() == [2, 0]
    assert results.lines == ["vae"] and set(results.arrays) == {"vae2", "vae0"}
    assert Study("toy", "Toy", specs[2:3]).results(store).rows.empty


def test_images_of_the_same_name_are_told_apart(tmp_path):
    store = Store(tmp_path)
    other = made_up(checksum="def")
    other.row["run"] = "elsewhere"
    store.keep([made_up(), other])
    with pytest.raises(InputError, match="checksum abc and checksum def|checksum def and checksum abc"):
        Study("toy", "Toy", (RunSpec("digits", "vae", 2),)).results(store)


def test_a_row_of_a_real_run_is_found_by_its_specification():
    spec = RunSpec("digits", "vae", 2, settings=dict(epochs=3))
    assert describe_spec(spec)["spec"] == resolve(spec).spec.text()
