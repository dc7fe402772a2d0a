"The committed results: every table has its checksum, every row is whole and has the name that its specification gives, and the executed pages say what the rows say."
import hashlib
import re

import numpy as np
import pytest

from conftest import needs_set
from gpvae.data import load
from gpvae.study.catalogue import PAGES, PRESETS, STUDIES, page
from gpvae.study.estimators import _AXES, _GROWING, _ROWS, _grown, _slope
from gpvae.study.run import COLUMNS
from gpvae.study.spec import PROTOCOL, RunSpec, parse_setting, settings_text, spec_hash
from gpvae.study.store import N_IMAGES, Store, checkout
from gpvae.study.tables import likelihood_table

STORE = Store(checkout() / "nbs" / "results")
ROWS, MODES, GAPS, REFITS = STORE.runs(), STORE.modes(), STORE.gaps(), STORE.refits()
RESULTS = [("digits", "smoke", "digits"), ("static_mnist", "cpu", "static_mnist"), ("static_mnist", "published", "static_mnist_published")]

def test_every_table_has_its_checksum_and_no_file_is_unknown():
    sums = dict(line.split("  ")[::-1] for line in (STORE.folder / "SHA256SUMS").read_text().splitlines())
    tables = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in STORE.folder.glob("*.csv")}
    assert sums == tables and set(tables) == {"runs.csv", "modes.csv", "gaps.csv", "refit.csv", "likelihoods.csv", "growth.csv"}
    known = {f"{r.dataset}-z{r.z_dim}-{r.budget}-{r.n_train}{part}" for r in ROWS.itertuples() for part in ("", "-refits")} | {f"gaps-{r.dataset}-{r.budget}" for r in GAPS.itertuples()}
    assert {p.stem for p in (STORE.folder / "images").glob("*.npz")} <= known | {"portrait"} # the numbers behind the picture of the front page

def test_the_results_stay_small(): # nine pages of pictures, half of it
    files = [p for p in STORE.folder.rglob("*") if p.is_file() and p.name != ".lock"]
    assert max(p.stat().st_size for p in files) < 1_000_000 and sum(p.stat().st_size for p in files) < 9_000_000 and len(files) <= 40

GROWTH = STORE.growth()

def test_growth_has_every_size():
    expected = {(name, axis, value) for axis, values in _AXES.items() for value in values for name, e in _GROWING.items() if _grown(e, axis, value)}
    expected |= {(f"store, {what}", "rows", n) for n in _ROWS for what in ("read", "find 100", "keep one")}
    assert {(r.family, r.axis, r.value) for r in GROWTH.itertuples()} == expected and (GROWTH[["seconds", "mb"]] > 0).all(axis=None)

@pytest.mark.parametrize("axis", ["images", "samples", "temperatures", "latents", "rows"])
def test_time_grows_linearly_or_better(axis):
    for family, g in GROWTH[GROWTH["axis"] == axis].groupby("family"): assert _slope(g["value"], g["seconds"]) < 1.15, family

def test_time_is_linear_or_better_in_the_weights_of_the_decoder():
    for family, g in GROWTH[GROWTH["axis"] == "width"].groupby("family"): assert _slope(g["value"] * (20 + g["value"] + 784), g["seconds"]) < 1.15, family

@pytest.mark.parametrize("axis", ["samples", "temperatures"])
def test_memory_does_not_grow_with_samples_or_temperatures(axis):
    for family, g in GROWTH[GROWTH["axis"] == axis].groupby("family"): assert abs(_slope(g["value"], g["mb"])) < 0.15, family

def test_rows_are_whole():
    assert tuple(ROWS.columns) == COLUMNS and ROWS["spec"].is_unique
    assert (ROWS["elbo"] <= ROWS["iwae"]).all() and ROWS["iwae"].between(-1e4, 1e5).all()
    for column in ("commit", "checksum", "device", "torch", "valid_elbo"): assert ROWS[column].notna().all(), column

def settings_in(text): return tuple(parse_setting(pair) for pair in re.findall(r"\w+=.*?(?= \w+=|$)", text))

def test_settings_can_be_read_back():
    for text in ROWS["settings"].unique(): assert settings_text(settings_in(text)) == text

@pytest.mark.parametrize("name", ["digits", pytest.param("static_mnist", marks=needs_set("static_mnist"))])
def test_a_row_has_the_name_that_its_specification_gives(name):
    checksum = load(name).checksum
    rows = ROWS[(ROWS["dataset"] == name) & (ROWS["protocol"] == PROTOCOL)]
    assert len(rows) > 2 and set(ROWS.loc[ROWS["dataset"] == name, "checksum"]) == {checksum[:12]}
    lost = {settings_text(s.settings) for s in STUDIES["lost"].specs} # their options are gone, and with them their names
    for r in rows[~rows["settings"].isin(lost)].to_dict("records"):
        spec = RunSpec(name, r["method"], r["z_dim"], r["seed"], r["budget"], r["likelihood"], r["n_train"], r["binarisation"], settings_in(r["settings"]))
        assert spec_hash(spec, checksum) == r["spec"], (r["method"], r["seed"], r["settings"])

def test_images_agree_with_their_rows():
    images, rows = STORE.images(ROWS), ROWS.set_index("spec")
    for key, values in images.items():
        spec, _, name = key.partition("_")
        error = values.std() / len(values)**0.5 # all images, or the first of a seeded order
        assert len(values) <= N_IMAGES and abs(values.mean() - rows.loc[spec, name]) < (0.01 if name != "iwae_widened" and len(values) < 2000 else 5 * error)

def test_modes_gaps_and_refits_are_of_kept_runs():
    runs = ROWS.set_index("spec")
    for table, key in ((MODES, ["spec", "mode"]), (GAPS, ["spec"]), (REFITS, ["spec", "part", "fitted"])):
        assert not table.duplicated(key).any() and set(table["spec"]) <= set(runs.index)
        assert (runs.loc[table["spec"], ["method", "seed"]].to_numpy() == table[["method", "seed"]].to_numpy()).all()
    assert (GAPS["settings"].to_numpy() == runs.loc[GAPS["spec"], "settings"].to_numpy()).all() and (GAPS["checksum"] == runs.loc[GAPS["spec"], "checksum"].to_numpy()).all()

def test_refits_start_from_the_bound_of_their_run():
    "Their 2000 images are the first of those that the run's bound is a mean over."
    runs = ROWS.set_index("spec")
    assert (REFITS["error"] > 0).all() and ((REFITS["doubt"] > 0) == (REFITS["method"] == "gpvae")).all()
    for r in REFITS[REFITS["fitted"] == "test images"].itertuples():
        assert abs(r.before - runs.loc[r.spec, "elbo"]) < 4 * runs.loc[r.spec, "iwae_se"] * (10_000 / r.images)**0.5 / 2

@pytest.mark.parametrize("dataset, budget, name", RESULTS)
def test_a_page_has_all_its_rows_and_shows_them(dataset, budget, name):
    study, path = page(dataset, budget), STORE.folder / f"{name}.ipynb"
    rows = study.rows(STORE)
    assert not study.missing(STORE) and list(study.methods) == list(PAGES[budget].methods)
    if not path.exists(): pytest.skip(f"the page {name} is not rendered yet")
    table, text = likelihood_table(rows, STORE.images(rows), study.methods), path.read_text()
    for cell in table.astype(str).to_numpy().ravel(): assert cell in text
    for method, g in rows.groupby("method"): assert f"{g['iwae'].mean():.2f}" in table.filter(like="IWAE-").loc[method].iloc[0]

@pytest.mark.parametrize("name", PRESETS)
def test_a_page_by_name_shows_its_rows(name):
    study, path = page(preset=name), STORE.folder / f"{name}.ipynb"
    if not path.exists(): pytest.skip(f"the page {name} is not rendered yet")
    rows, text = study.rows(STORE), path.read_text()
    for z, g in rows.groupby("z_dim"):
        for cell in likelihood_table(g, STORE.images(g), study.methods).astype(str).to_numpy().ravel(): assert cell in text
    missing = study.missing(STORE)
    if missing: pytest.skip(f"{len(missing)} runs of {name} are not made yet; the page shows the other {len(rows)}")

def test_gaps_are_whole():
    images = STORE.gap_images(GAPS)
    for r in GAPS.to_dict("records"):
        start = f"{r['spec']}_test_"
        test = {k.removeprefix(start): v for k, v in images.items() if k.startswith(start)}
        sizes = {len(v) for v in test.values()}
        assert sizes in ({500}, {200}, {100}) and np.isfinite(test["elbo"]).all() # 200 where seeds are compared, 100 elsewhere
        assert abs(test["iwae_1.0"].mean() - r["iwae_1.0"]) < 0.01
