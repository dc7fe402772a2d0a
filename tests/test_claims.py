"""The claims: one verdict a line, read from its interval; what was not run is said so; unlike rows share no
line."""
import dataclasses

import numpy as np
import pytest

from gpvae.files import sha256
from gpvae.study.claims import (claim_settings, claims_study, count_verdicts, difficulty_claim,
                                likelihood_claim, rivals, speed_claim)
from gpvae.study.compare import difference
from gpvae.study.report import render
from gpvae.study.run import describe_spec
from gpvae.study.store import Store
from gpvae.study.studies import grid
from gpvae.study.tables import with_interval
from test_store import made_up as made
from test_gaps import made_up as measured

RIVALS = ("vae", "sa-4", "iaf-4", "hf-4", "me-3", "rme-3")
METHODS = (*RIVALS, "gpvae")
STUDY = grid("digits", METHODS, (2,), 3)


def levels(**changed):
    return dict.fromkeys(RIVALS, -90.) | {"gpvae": -88.} | {k.replace("_", "-"): v
                                                            for k, v in changed.items()}


def keep(folder, levels, seeds=3, study=STUDY, names=("iwae",), **same):
    "A store with runs of methods at levels of nats, seeds 0.1 nats apart."
    store, results = Store(folder), []
    for spec in study.specs:
        if spec.method not in levels or spec.seed >= seeds:
            continue
        level = levels[spec.method] + 0.1 * (spec.seed - (seeds - 1) / 2)
        run = sha256(spec.text() + str(same))[:12]
        result = made(spec.method, spec.seed, level,
                      **describe_spec(spec) | dict(run=run, z_dim=spec.z_dim) | same)
        numbers = {name: np.full(50, level, np.float32) for name in names}
        results.append(dataclasses.replace(result, per_image=numbers))
    store.keep(results)
    return store


def likelihood(store, study=STUDY, **more):
    return likelihood_claim(claim_settings(study, store), **more).set_index("rival")


@pytest.mark.parametrize("rival, verdict",
                         [(-90., "supported"), (-86., "contradicted"), (-88., "inconclusive")])
def test_a_line_is_supported_above_its_rival_and_contradicted_below(tmp_path, rival, verdict):
    table = likelihood(keep(tmp_path, levels(sa_4=rival)))
    assert list(table.index) == list(RIVALS) and table.loc["sa-4", "higher"] == verdict
    assert (table.drop("sa-4")["higher"] == "supported").all() and (table["seeds"] == "3 and 3").all()
    counts = count_verdicts({"higher": table["higher"]})
    assert counts.loc["higher", "supported"] == 5 + (verdict == "supported") and counts.to_numpy().sum() == 6


def test_the_interval_is_that_of_the_other_pages(tmp_path):
    store = keep(tmp_path, levels())
    results = STUDY.results(store)
    expected = difference(results.rows, results.arrays, "gpvae", "vae", "iwae")
    assert likelihood(store).loc["vae", "difference"] == with_interval(expected)


def test_models_are_judged_by_log_px_where_both_have_it(tmp_path):
    store = keep(tmp_path, levels())
    table = likelihood(store)
    assert (table["of"] == "IWAE-100").all()
    for method, level in (("gpvae", -85.), ("vae", -80.)):
        for row in store.table("runs").query("method == @method").to_dict("records"):
            numbers = {"iwae": np.full(50, row["iwae"]), "log_px": np.full(50, level + 0.1 * row["seed"])}
            result = made(method, int(row["seed"]),
                          **{k: v for k, v in row.items() if k not in ("method", "seed")})
            store.keep([dataclasses.replace(result, per_image=numbers)])
    table = likelihood(store)
    assert table.loc["vae", ["of", "higher"]].tolist() == ["log p(x)", "contradicted"]
    assert table.loc["sa-4", ["of", "higher"]].tolist() == ["IWAE-100", "supported"]


def test_what_was_not_run_is_said_to_be_so(tmp_path):
    table = likelihood(keep(tmp_path / "a", {"vae": -90., "gpvae": -88.}))
    assert table["difference"].tolist()[1:] == ["not run"] * 3 and (table["higher"][1:] == "").all()
    assert list(table.index) == ["vae", "semi-amortized", "flow", "mixture"]
    assert claim_settings(STUDY, Store(tmp_path / "empty")) == {}
    assert claim_settings(STUDY, keep(tmp_path / "b", {"vae": -90., "sa-4": -89.})) == {}


def test_one_seed_decides_nothing(tmp_path):
    table = likelihood(keep(tmp_path, levels(), seeds=1))
    assert table["difference"].tolist() == ["+2.00"] * 6 and (table["higher"] == "inconclusive").all()


def test_the_control_is_a_table_of_its_own(tmp_path):
    study = grid("digits", (*METHODS, "gpvae-mean"), (2,), 3)
    store = keep(tmp_path, levels(gpvae_mean=-88.), study=study)
    table = likelihood(store, study, control=True)
    assert table.loc["gpvae-mean", "higher"] == "inconclusive" and len(table) == 1
    assert "gpvae-mean" not in likelihood(store, study).index


def test_each_setting_has_its_lines_and_unlike_rows_share_none(tmp_path):
    sizes = grid("digits", METHODS, (2, 5), 3)
    store = keep(tmp_path, levels(), study=sizes)
    settings = claim_settings(sizes, store)
    assert list(settings) == ["the digits of scikit-learn, z 2, 1.3k",
                              "the digits of scikit-learn, z 5, 1.3k"]
    assert len(likelihood_claim(settings)) == 12
    other = grid("digits", ["sa-4"], (2,), 3, settings=dict(lr=0.1))
    store = keep(tmp_path / "other", {m: v for m, v in levels().items() if m != "sa-4"})
    keep(tmp_path / "other", {"sa-4": -60.}, study=other)
    assert likelihood(store).loc["semi-amortized", "difference"] == "not run"


def test_a_setting_has_the_latest_protocol_of_its_own(tmp_path):
    sizes = grid("digits", METHODS, (2, 5), 3)
    keep(tmp_path, levels(), study=grid("digits", METHODS, (2,), 3), protocol=3)
    store = keep(tmp_path, levels(), study=grid("digits", METHODS, (5,), 3), protocol=4)
    assert [part.rows["protocol"].unique().tolist() for part in claim_settings(sizes, store).values()] == [
        [3], [4]
    ]


def test_rivals_are_the_families_of_the_paper(tmp_path):
    study = grid("digits", ("gpvae", "vae", "vae-dropout", "full", "sa-1", "sa-4", "hf-1"), (2,), 1)
    store = keep(tmp_path, dict.fromkeys(study.lines, -90.), seeds=1, study=study)
    part, = claim_settings(study, store).values()
    assert list(rivals(part)) == [("VAE", "vae"), ("semi-amortized", "sa-1"), ("semi-amortized", "sa-4"),
                                  ("flow", "hf-1"), ("mixture", None)]


@pytest.mark.parametrize("ms, verdict", [(10., "supported"), (2., "inconclusive"), (0.5, "contradicted")])
def test_speed_is_a_ratio_over_seeds_on_one_machine(tmp_path, ms, verdict):
    store = keep(tmp_path, levels())
    settings = claim_settings(STUDY, store)
    assert speed_claim(settings).iloc[0]["times as long"] == "not timed"
    part, = settings.values()
    for name, time in (("gpvae", 2.), ("sa-4", ms)):
        of = part.rows["line"] == name
        part.rows.loc[of, "infer_ms_batch"] = time * (1 + part.rows.loc[of, "seed"] / 100)
    line = speed_claim(settings).iloc[0]
    assert line["times as long"].startswith(f"{ms / 2:.1f} [") and line["longer"] == verdict
    part.rows.loc[part.rows["line"] == "sa-4", "machine"] = "another"
    assert speed_claim(settings).iloc[0]["times as long"] == "not timed"


@pytest.mark.parametrize("knows, verdict", [(1., "supported"), (-1., "contradicted"), (0., "inconclusive")])
def test_difficulty_is_a_rank_correlation_with_both_gaps(tmp_path, knows, verdict):
    store = keep(tmp_path, levels())
    run = store.table("runs").query("method == 'gpvae' and seed == 0")["run"].item()
    store.keep_gaps(dict(run=run), measured(knows, free=0.).arrays)
    table = difficulty_claim(claim_settings(STUDY, store)).set_index("gap")
    assert table.loc["amortization", ["ranks it", "adds to the free scores"]].tolist() == [verdict] * 2
    assert table.loc["approximation", "ranks it"] == "inconclusive"
    table = difficulty_claim(claim_settings(STUDY, keep(tmp_path / "none", levels())))
    assert (table["alone"] == "not measured").all()


def test_the_study_of_the_claims_has_every_run_that_has_a_page():
    study = claims_study()
    assert len({spec.text() for spec in study.specs}) == len(study.specs) > 50 and study.name == "claims"


def test_the_page_says_what_the_files_say(tmp_path):
    store = keep(tmp_path, levels(sa_4=-86.))
    study = dataclasses.replace(STUDY, name="claims", title="The claims of the paper")
    page = render(study, store, template="claims")
    text = page.read_text()
    assert page.name == "claims.html" and "The claims of the paper" in text
    for table in (likelihood(store), speed_claim(claim_settings(STUDY, store))):
        for cell in table.to_numpy().ravel():
            assert cell in text
