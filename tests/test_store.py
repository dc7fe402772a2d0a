"The store: two processes that save at once lose nothing, damage is one line, and a query finds the rows that were meant."
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gpvae.checks import InputError
from gpvae.study import store as module
from gpvae.study.run import COLUMNS, RunResult
from gpvae.study.spec import RunSpec
from gpvae.study.store import N_IMAGES, Store, check_alike, select

ROW = dict(dataset="toy", z_dim=2, likelihood="bernoulli", budget="cpu", n_train=10_000, binarisation="static", iwae_k=100, protocol=3, checksum="abc", settings="")

def made_up(method="vae", seed=0, level=-90., n=50, modes=False, **more):
    "A finished run whose every image has the same IWAE."
    iwae = torch.full((n,), float(level))
    row = dict.fromkeys(COLUMNS) | ROW | dict(method=method, seed=seed, spec=f"{method}{seed}", elbo=level - 1., iwae=float(level)) | more
    if modes: row["modes"] = {m: dict(elbo=level, iwae=level, ess=3.) for m in ("marginal", "mean")}
    return RunResult(Path(), row, {"iwae": iwae, "elbo": iwae - 1})

def table_of(*runs): return pd.DataFrame([r.metrics for r in runs])

def test_a_new_row_replaces_its_own_and_no_other(tmp_path):
    store = Store(tmp_path)
    store.keep([made_up(seed=s, level=-90 - s, n=N_IMAGES + 1000, modes=True) for s in range(2)])
    store.keep([made_up(seed=1, level=-80, n=N_IMAGES + 1000, modes=True)])
    rows, images = store.runs(), store.images(store.runs())
    assert rows.set_index("seed")["iwae"].to_dict() == {0: -90., 1: -80.} and len(store.modes()) == 4
    assert {k: (len(v), v[0]) for k, v in images.items() if k.endswith("iwae")} == {"vae0_iwae": (N_IMAGES, -90.), "vae1_iwae": (N_IMAGES, -80.)}
    assert store.modes().set_index(["seed", "mode"]).loc[(1, "mean"), "elbo"] == -80

def test_images_are_read_for_the_rows_that_are_asked_for(tmp_path):
    store = Store(tmp_path)
    store.keep([made_up(seed=s, n_train=n) for s, n in ((0, 10), (1, 10), (2, 20))])
    assert set(store.images(store.runs()[:1])) == {"vae0_elbo", "vae0_iwae"} and len(store.images(store.runs())) == 6
    assert {p.name for p in (tmp_path / "images").glob("*.npz")} == {"toy-z2-cpu-10.npz", "toy-z2-cpu-20.npz"}
    store.keep([made_up(seed=3, n_train=30)], images=False)
    assert not (tmp_path / "images" / "toy-z2-cpu-30.npz").exists() and len(store.runs()) == 4

@pytest.mark.parametrize("level", [-90.003, 511.9, -3000.1, np.inf, np.nan])
def test_numbers_of_images_are_rounded_to_64ths_whatever_their_size(tmp_path, level):
    store = Store(tmp_path)
    store.keep([made_up(level=level)])
    np.testing.assert_allclose(store.images(store.runs())["vae0_iwae"], level, atol=1 / 128, rtol=1e-6)

def test_an_empty_store_has_no_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("GPVAE_RESULTS", str(tmp_path / "nothing"))
    store = Store()
    assert store.folder == tmp_path / "nothing" and not any(len(t) for t in (store.runs(), store.modes(), store.gaps(), store.refits()))
    assert store.images(store.runs()) == {} and len(select(store.runs(), [RunSpec("toy", "vae", 2, 0, "cpu")])) == 0

def test_gaps_and_refits_are_kept(tmp_path):
    store, row = Store(tmp_path), {k: made_up().metrics[k] for k in ("dataset", "method", "seed", "budget", "spec")}
    store.keep_gaps(row | {"sandwich": 0.1}, {"vae0_test_elbo": np.float32([1, 2]), "vae0_test_old": np.float32([1])})
    store.keep_gaps(row | {"sandwich": 0.2}, {"vae0_test_elbo": np.float32([3, 4])})
    assert store.gaps()["sandwich"].tolist() == [0.2]
    assert {k: v.tolist() for k, v in store.gap_images(store.gaps()).items()} == {"vae0_test_elbo": [3, 4]}
    for won in (0.5, 0.7): store.keep_refits([{"spec": "vae0", "part": p, "fitted": "test images", "won": won} for p in ("biases", "heads")])
    assert store.refits()["won"].tolist() == [0.7, 0.7]

SAVER = """
import sys; from pathlib import Path; sys.path.insert(0, {tests!r})
from test_store import Store, made_up
store, name = Store({folder!r}), sys.argv[1]
(store.folder / name).touch()
while len(list(store.folder.glob("ready-*"))) < 2: pass
for i in range(20): store.keep([made_up(name.removeprefix("ready-"), i, modes=True)])
"""

def test_two_processes_that_save_at_once_lose_nothing(tmp_path):
    code = SAVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    both = [subprocess.Popen([sys.executable, "-c", code, f"ready-{m}"], cwd=tmp_path) for m in ("vae", "gpvae")]
    assert [p.wait(300) for p in both] == [0, 0]
    store = Store(tmp_path)
    assert len(store.runs()) == 40 and len(store.images(store.runs())) == 80 and len(store.modes()) == 80
    assert not list(tmp_path.rglob(".*.csv")) + list(tmp_path.rglob(".*.npz"))

@pytest.mark.parametrize("name", ["runs.csv", "SHA256SUMS", "images/toy-z2-cpu-10000.npz"])
@pytest.mark.parametrize("damage", ["flip", "cut", "zero", "empty"])
def test_damage_is_one_line(tmp_path, name, damage):
    store, path = Store(tmp_path), tmp_path / name
    store.keep([made_up(seed=s) for s in range(3)])
    rows, content = store.runs(), bytearray(path.read_bytes())
    before = {k: v.tolist() for k, v in store.images(rows).items()}
    middle = len(content) // 2
    if damage == "flip": content[middle] ^= 1
    if damage == "zero": content[middle:middle + 16] = bytes(16)
    path.write_bytes(content[:middle] if damage == "cut" else b"" if damage == "empty" else content)
    if name.startswith("images"):
        try: assert {k: v.tolist() for k, v in store.images(rows).items()} == before # a flip in what nobody reads, such as a time
        except InputError as e: assert "\n" not in str(e) and "toy-z2-cpu-10000.npz" in str(e)
        return
    for use in (store.runs, lambda: store.keep([made_up(seed=9)])): # nothing is saved on top of damage
        with pytest.raises(InputError, match="runs.csv") as e: use()
        assert "\n" not in str(e.value)

@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_process_killed_while_it_saves_leaves_a_whole_table(tmp_path, monkeypatch, at):
    "Writing a table is three steps; the process ends at any of them."
    store = Store(tmp_path)
    store.keep([made_up()], images=False)
    calls, write = [], module.write_atomically
    def until(path, how):
        calls.append(path)
        if len(calls) == at:
            (path.parent / f".1.{path.name}").touch() # what a kill leaves
            raise KeyboardInterrupt
        write(path, how)
    monkeypatch.setattr(module, "write_atomically", until)
    with pytest.raises(KeyboardInterrupt): store.keep([made_up(seed=1)], images=False)
    monkeypatch.undo()
    assert len(store.runs()) == (2 if at == 3 else 1)
    store.keep([made_up(seed=1)], images=False)
    assert len(store.runs()) == 2 and (tmp_path / "SHA256SUMS").read_text().count("runs.csv") == 1
    assert [p for p in tmp_path.rglob(".*") if p.name != ".lock"] == []

# Queries.

SPEC = RunSpec("toy", "vae", 2, 0, "cpu")

def test_a_query_follows_the_order_of_the_specifications():
    rows = table_of(*(made_up(seed=s) for s in range(3)))
    found = select(rows, [RunSpec("toy", "vae", 2, s, "cpu") for s in (2, 7, 0)])
    assert found["seed"].tolist() == [2, 0] and found.index.tolist() == [0, 2] and found["seed"].dtype == rows["seed"].dtype

@pytest.mark.parametrize("other", [dict(method="gpvae"), dict(z_dim=3), dict(seed=1), dict(budget="smoke"), dict(dataset="digits"), dict(settings="lr=0.1"), dict(n_train=20_000)])
def test_rows_of_other_runs_are_not_found(other):
    assert len(select(table_of(made_up(**other)), [SPEC])) == 0

def test_the_budgets_number_of_images_or_as_many_as_there_are():
    "A budget's 10000 images are meant unless the specification says another number; a set that is smaller has its own."
    found = lambda sizes, **more: select(table_of(*(made_up(n_train=n, spec=str(n)) for n in sizes)), [RunSpec("toy", "vae", 2, 0, "cpu", **more)])["n_train"].tolist()
    assert found([1000, 10_000, 50_000]) == [10_000] and found([1000, 10_000, 50_000], n_train=50_000) == [50_000] and found([1300]) == [1300]

def test_what_is_left_open_is_the_data_sets():
    rows = table_of(*(made_up(dataset="digits", n_train=1300, budget="smoke", likelihood=l, binarisation=b, spec=l) for l, b in (("bernoulli", "fixed"), ("gaussian", "none"))))
    assert select(rows, [RunSpec("digits", "vae", 2, 0, "smoke")])["likelihood"].tolist() == ["bernoulli"]
    assert select(rows, [RunSpec("digits", "vae", 2, 0, "smoke", likelihood="gaussian")])["binarisation"].tolist() == ["none"]

@pytest.mark.parametrize("column, value", [("checksum", "def"), ("likelihood", "gaussian"), ("binarisation", "none")])
def test_a_query_that_cannot_tell_rows_apart_says_so(column, value):
    "An own data set of the same name, or pixels that the specification leaves open."
    with pytest.raises(InputError, match=f"{column} .*{value}"): select(table_of(made_up(), made_up(spec="other", **{column: value})), [SPEC])

def test_two_rows_of_one_seed_are_one_and_the_later_protocol_counts():
    rows = table_of(made_up(spec="new"), made_up(spec="old", protocol=2))
    assert select(rows, [SPEC])["spec"].tolist() == ["new"] and len(select(pd.concat([rows, rows]), [SPEC])) == 1

def test_a_data_set_named_by_its_path_is_found_by_its_name():
    assert len(select(table_of(made_up()), [RunSpec("somewhere/toy.npz", "vae", 2, 0, "cpu")])) == 1

def test_unlike_rows_are_refused_by_name():
    rows = table_of(made_up(), made_up(seed=1, settings="lr=0.1"))
    check_alike(rows, but=("settings",))
    with pytest.raises(InputError, match="settings"): check_alike(rows)
