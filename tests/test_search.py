"The settings of every family: enough tries, and the best of them by validation is the preset."
from dataclasses import asdict
from pathlib import Path
import pandas as pd
import pytest
from gpvae.run import RunSpec, options_of, settings_of
from gpvae.search import FINALS, SHORT, TRIES, WHOLE, chosen, search_grid, search_table, tried
from gpvae.tables import read_csv

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "results"
ROWS = read_csv(RESULTS / "search.csv").fillna({"settings": ""})

def rows_of(method, short=True): return ROWS[(ROWS["method"] == method) & ((ROWS["n_train"] == 5000) == short)]

def settings_in(text): return dict(pair.split("=") for pair in text.split())

@pytest.mark.parametrize("method", TRIES)
def test_the_preset_is_the_best_try_by_validation(method):
    short, last = rows_of(method), rows_of(method, False)
    assert len(short) == len(TRIES[method]) >= 3 and len(last) == len(FINALS.get(method, []))
    decisive = last if len(last) else short
    best = settings_in(decisive.loc[decisive["valid_elbo"].idxmax(), "settings"])
    spec = RunSpec(method=method, budget="cpu")
    preset = {k: v for k, v in (asdict(settings_of(spec)) | options_of(spec)).items() if k not in SHORT}
    for key, value in preset.items():
        if key in best: assert float(best[key]) == value, f"{method} starts with {key}={value}, the best try had {best[key]}"

@pytest.mark.parametrize("method", FINALS)
def test_a_final_is_among_the_preset_and_the_best_of_the_tries(method):
    short, last = rows_of(method), rows_of(method, False)
    best = {k: v for k, v in settings_in(short.loc[short["valid_elbo"].idxmax(), "settings"]).items() if k not in SHORT}
    tried_last = [{k: v for k, v in settings_in(text).items() if k not in WHOLE} for text in last["settings"]]
    assert {} in tried_last and best in tried_last

def test_tries_differ_in_their_own_settings_alone():
    for spec in search_grid():
        short = dict(spec.settings).keys() >= SHORT.keys()
        assert {k: v for k, v in spec.settings if k in SHORT} == (SHORT if short else WHOLE) and (spec.n_train, spec.seed, spec.budget) == (5000 if short else None, 0, "cpu")
    assert len({(s.method, s.n_train, s.settings) for s in search_grid()}) == sum(map(len, [*TRIES.values(), *FINALS.values()])) == len(ROWS)

def test_the_table_puts_the_best_first():
    for found in (tried(ROWS, TRIES, SHORT), tried(ROWS, FINALS, WHOLE)):
        for _, g in search_table(found).groupby(level="family"): assert g["validation ELBO"].is_monotonic_decreasing

def test_the_final_decides():
    first = {m: pairs[0][0] for m, pairs in tried(ROWS, TRIES, SHORT).items()}
    assert chosen(ROWS) == first | {m: pairs[0][0] for m, pairs in tried(ROWS, FINALS, WHOLE).items()}
    turned = ROWS.assign(valid_elbo=ROWS["valid_elbo"].where(ROWS["n_train"] == 5000, -ROWS["valid_elbo"]))
    assert all(chosen(turned)[m] != chosen(ROWS)[m] for m in FINALS) and all(chosen(turned)[m] == first[m] for m in first if m not in FINALS)

def test_rows_of_other_settings_are_not_tries():
    strange = ROWS.assign(settings="epochs=1")
    assert tried(strange, TRIES, SHORT) == {} and tried(pd.concat([ROWS, strange]), TRIES, SHORT).keys() == TRIES.keys()

@pytest.mark.parametrize("method, key", [("vae", "weight_decay"), ("gpvae", "prior_scale")])
def test_what_the_recipe_tried_is_the_preset_too(method, key):
    "With all images and epochs, on the first seed: the line without a change is the best of those that change this setting alone."
    rows = read_csv(RESULTS / "recipe_constant_step.csv")
    rows = rows[(rows["method"] == method) & (rows["seed"] == 0) & rows["settings"].str.fullmatch(rf"milestones=\(\)( {key}=\S+)?")]
    assert len(rows) >= 3 and (rows["settings"] == "milestones=()").sum() == 1
    assert rows.loc[rows["valid_elbo"].idxmax(), "settings"] == "milestones=()"
