"The committed rows: whole files, one row a run, means of the images, a page for every study of a page."
import json
from pathlib import Path

import numpy as np
import pytest

from gpvae.files import read_json
from gpvae.study.methods import METHODS
from gpvae.study.store import KEYS, Store, check_comparable
from gpvae.study.studies import find_study, named_studies, preset_studies

NBS = Path(__file__).resolve().parents[2] / "nbs"
STORE = Store(NBS / "results")
ROWS = STORE.table("runs")


@pytest.mark.parametrize("name", KEYS)
def test_tables_are_whole_and_name_each_run_once(name):
    table = STORE.table(name)
    assert len(table) and not table.duplicated(KEYS[name]).any()
    assert set(table["run"]) <= set(ROWS["run"])


def test_rows_make_sense():
    assert set(ROWS["method"]) <= set(METHODS)
    assert (ROWS["elbo"] < ROWS["iwae"]).all() and np.isfinite(ROWS[["elbo", "iwae", "ess"]]).all().all()
    assert (ROWS["ess"].between(1, ROWS["k"])).all() and (ROWS["active_units"] <= ROWS["z_dim"]).all()
    annealed = ROWS.dropna(subset=["log_px"])
    assert (annealed["log_px_error"] > 0).all() and (annealed["n_log_px"] >= 100).all()


def test_means_are_those_of_the_images():
    checked = 0
    for _, row in ROWS.iterrows():
        arrays = STORE.arrays(row["run"])
        for name in ("elbo", "iwae"):
            if name in arrays and len(arrays[name]) == row["n_test"]:
                assert arrays[name].mean(dtype=float) == pytest.approx(row[name], abs=0.02, rel=1e-4)
                checked += 1
    assert checked >= 6


@pytest.mark.parametrize("name", preset_studies() | named_studies())
def test_lines_of_a_study_can_share_a_table(name):
    results = find_study(name).results(STORE)
    for _, part in results.rows.groupby(["z_dim", "n_train"]):
        check_comparable(part)
    assert not results.rows.duplicated(["line", "z_dim", "n_train", "seed"]).any()


@pytest.mark.parametrize("name", preset_studies())
def test_every_study_of_a_page_has_its_page(name):
    assert len(find_study(name).results(STORE).rows)
    page = json.loads((NBS / "results" / f"{name}.ipynb").read_text())
    text = "".join("".join(cell["source"]) for cell in page["cells"])
    assert text.startswith("---") or "# " in text


def test_no_file_is_large_or_belongs_to_no_row():
    for folder in ("runs", "gaps"):
        for path in (NBS / "results" / folder).glob("*.npz"):
            assert path.stem in set(ROWS["run"]) and path.stat().st_size < 1_000_000


def test_the_benchmark_has_its_groups_and_rounds():
    measured = read_json(NBS / "results" / "benchmarks.json")
    for group in ("step", "iwae", "posterior"):
        assert {len(times) for times in measured["groups"][group].values()} == {measured["rounds"]}
    assert {"vae", "gpvae", "plain eager", "matrix products"} <= set(measured["groups"]["step"])
