"The committed studies: presets are the best of what was tried, lines that a claim rests on have rows, and the pages of the studies say what the rows say."
from dataclasses import asdict

import pandas as pd
import pytest

from gpvae.study.catalogue import STUDIES, page
from gpvae.study.spec import RunSpec, options_of, settings_of
from gpvae.study.store import Store, checkout
from gpvae.study.tables import line_table

NBS = checkout() / "nbs"
STORE = Store(NBS / "results")
SEARCH, FINALS, ABLATION = (STUDIES[name].rows(STORE) for name in ("search", "finals", "ablation"))
SHARED = {"milestones", "n_test", "epochs", "kl_warmup"}

def settings_at(name, number): return {k: v for k, v in STUDIES[name].specs[number].settings if k not in SHARED}


@pytest.mark.parametrize("name", ["finals", "steps", "lost", "grey_protocol", "colour_protocol"])
def test_no_run_is_missing(name):
    missing = STUDIES[name].missing(STORE)
    assert not missing if name != "lost" else all(s.seed > 0 for s in missing) # some of these have one seed

SEARCHED = [m for m in STUDIES["search"].methods if (SEARCH["method"] == m).any()]

def test_a_family_has_all_its_tries_or_none():
    assert len(SEARCHED) >= 4 and all((SEARCH["method"] == m).sum() == 5 for m in SEARCHED)

@pytest.mark.parametrize("method", SEARCHED)
def test_no_try_is_clearly_ahead_of_the_preset(method):
    "By half a nat, as two seeds of one setting may differ. The final counts where there is one: short tries were turned over by 2.3 nats."
    name, rows = ("finals", FINALS) if (FINALS["method"] == method).any() else ("search", SEARCH)
    spec = RunSpec(method=method, budget="cpu")
    preset = asdict(settings_of(spec)) | options_of(spec)
    bounds = {i: r["valid_elbo"] for i, r in rows[rows["method"] == method].iterrows()}
    usual = [i for i in bounds if settings_at(name, i).items() <= preset.items()]
    assert len(usual) == 1 and bounds[usual[0]] > max(bounds.values()) - 0.5, f"{method} starts with other settings than its best try"

def test_grey_pixels_have_the_best_protocol_that_was_tried():
    rows = STUDIES["grey_protocol"].rows(STORE)
    best = dict(STUDIES["grey_protocol"].specs[rows["valid_elbo"].idxmax()].settings)
    assert all(best.items() <= dict(s.settings).items() for s in STUDIES["grey"].specs if "decoder" not in dict(s.settings))

def first_seed(line): return ABLATION[(ABLATION["line"] == line) & (ABLATION["seed"] == 0)]["valid_elbo"].item()

def test_the_schedule_is_the_best_of_those_tried_for_the_vae():
    "Within the noise of the validation set: no other schedule is ahead by more than 0.05 nats."
    others = [line for line in ABLATION["line"].unique() if line.startswith("vae, steps")]
    assert len(others) >= 4 and all(first_seed("vae") > first_seed(line) - 0.05 for line in others)

@pytest.mark.parametrize("default, changed", [("vae", "weight decay"), ("gpvae", "prior scale"), ("vae", "KL warm-up"), ("gpvae", "temperature")])
def test_no_other_setting_is_ahead_of_a_default(default, changed):
    "By more than its seeds differ: another processor alone, which rounds differently, moves a run as far."
    others = [line for line in ABLATION["line"].unique() if line.startswith(f"{default}, ") and changed in line]
    spread = ABLATION[ABLATION["line"] == default]["valid_elbo"].std()
    assert others and spread < 0.4 and all(first_seed(default) > first_seed(line) - spread for line in others)

def test_smaller_steps_at_the_end_are_worth_about_two_nats():
    bound = lambda study: study.rows(STORE).groupby("method")["elbo"].mean()
    alike = page("static_mnist", "cpu", ["sa-4"], 3, settings=(("weight_decay", 0.2),)) # it has another of its own
    usual = bound(page("static_mnist", "cpu")).drop("sa-4")
    gain = (pd.concat([usual, bound(alike)]) - bound(STUDIES["steps"])).dropna()
    assert len(gain) == 7 and gain.drop("sa-4").between(1.5, 2.5).all() and gain["sa-4"] < 1

def text_of(name): return (NBS / "studies" / f"{name}.ipynb").read_text()

def test_the_page_of_the_recipe_shows_its_rows():
    text = text_of("recipe")
    for line, row in line_table(ABLATION).iterrows():
        assert line in text and row["validation ELBO"] in text and row["test IWAE"] in text, line

def test_the_page_of_the_search_shows_its_rows():
    text = text_of("search")
    for rows in (SEARCH, FINALS):
        for bound in rows["valid_elbo"].round(2): assert str(bound) in text

def test_the_page_of_the_learning_curve_shows_its_rows():
    text = text_of("learning_curve")
    for (n, _), g in STUDIES["learning_curve"].rows(STORE).groupby(["n_train", "method"]): assert f"{g['iwae'].mean():.2f}" in text, n
