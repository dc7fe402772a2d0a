"The settings of every family: enough tries, and the best of them by validation is the preset."
from dataclasses import asdict
from pathlib import Path
import pandas as pd
import pytest
from gpvae.run import RunSpec, options_of, settings_of
from gpvae.search import SHORT, TRIES, WHOLE, search_grid, search_table, tried
from gpvae.tables import read_csv

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "results"
ROWS = read_csv(RESULTS / "search.csv")

@pytest.mark.parametrize("method", TRIES)
def test_the_preset_is_the_best_try_by_validation(method):
    rows = ROWS[ROWS["method"] == method]
    settings = [dict(pair.split("=") for pair in text.split()) for text in rows["settings"].fillna("")]
    best = settings[rows["valid_elbo"].argmax()]
    assert len(rows) == len(TRIES[method]) >= 3
    spec = RunSpec(method=method, budget="cpu")
    for key, value in {k: v for k, v in (asdict(settings_of(spec)) | options_of(spec)).items() if k not in SHORT}.items():
        if key in best: assert float(best[key]) == value, f"{method} starts with {key}={value}, the best try had {best[key]}"

def test_tries_differ_in_their_own_settings_alone():
    for spec in search_grid():
        whole = spec.method in WHOLE
        assert {k: v for k, v in spec.settings if k in SHORT} == ({} if whole else SHORT) and (spec.n_train, spec.seed, spec.budget) == (None if whole else 5000, 0, "cpu")
    assert len({(s.method, s.settings) for s in search_grid()}) == sum(map(len, TRIES.values())) == len(ROWS)

def test_the_table_puts_the_best_first():
    table = search_table(ROWS)
    for _, g in table.groupby(level="family"): assert g["validation ELBO"].is_monotonic_decreasing

def test_rows_of_other_settings_are_not_tries():
    strange = ROWS.assign(settings="epochs=1")
    assert tried(strange) == {} and tried(pd.concat([ROWS, strange])).keys() == tried(ROWS).keys()

@pytest.mark.parametrize("method, key", [("vae", "weight_decay"), ("gpvae", "prior_scale")])
def test_what_the_recipe_tried_is_the_preset_too(method, key):
    "With all images and epochs, on the first seed: the line without a change is the best of those that change this setting alone."
    rows = read_csv(RESULTS / "recipe.csv")
    rows = rows[(rows["method"] == method) & (rows["seed"] == 0) & (rows["settings"].isna() | rows["settings"].fillna("").str.fullmatch(rf"{key}=\S+"))]
    assert len(rows) >= 3 and rows["settings"].isna().sum() == 1
    assert pd.isna(rows.loc[rows["valid_elbo"].idxmax(), "settings"])
