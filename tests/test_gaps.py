"Gaps: what is measured is kept and continues after a stop, and tables say what the numbers say."

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from gpvae.checks import InputError
from gpvae.data import binarise_fixed, prepare_splits, split_seed, to_float
from gpvae.evaluation import ais as annealing
from gpvae.evaluation.ais import AISConfig, ais
from gpvae.evaluation.scores import leverage
from gpvae.inference.best_gaussian import Climb
from gpvae.statistics import bootstrap, difference_interval, partial_correlation, spearman
from gpvae.study import gaps, gap_tables
from gpvae.study.compare import stacked_difference
from gpvae.study.config import load_images
from gpvae.study.gap_tables import MeasuredRun, rankings
from gpvae.study.gaps import GapSettings, measure, measure_split, round_binary
from gpvae.study.report import render
from gpvae.study.run import load_model, open_run, run
from gpvae.study.store import Store
from gpvae.study.studies import grid
from gpvae.study.tables import with_interval
from toys import bernoulli_model, gp_encoder, seeded

QUICK = GapSettings(AISConfig(temperatures=4, chains=4, leapfrog_steps=1, start="posterior"), Climb(steps=25),
                    samples=40, k=10, simulated=4, chunk=16)
COUNTS = dict(test=24, train=4, valid=20)
SETTINGS = dict(n_train=200, n_valid=50, n_test=50, hidden=(16,), epochs=2)

# --- chunks

@pytest.fixture
def short_pilot(monkeypatch):
    monkeypatch.setattr(annealing, "_PILOT_TEMPERATURES", 3)

def toy():
    x = (255 * (torch.rand(11, 1, 4, 4, generator=seeded()) < 0.5)).byte()
    return bernoulli_model(gp_encoder()).float(), x

def test_a_stopped_measurement_continues_to_the_same_numbers(tmp_path, monkeypatch, short_pilot):
    model, x = toy()
    monkeypatch.setitem(gaps.PARTS_OF, "train", ("bound", "annealed"))
    settings = GapSettings(QUICK.annealing, samples=20, chunk=4)
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    whole = measure_split(tmp_path / "whole", model, "train", x, "static", settings)
    np.testing.assert_allclose(whole["log_px"], ais(model, x, settings.annealing).log_px.numpy(), rtol=1e-5)
    measure_split(tmp_path / "part", model, "train", x[:6], "static", settings)
    done = []
    part = measure_split(tmp_path / "part", model, "train", x, "static", settings, done.append)
    assert done == [8, 4, 4, 3, 3]  # of two parts; one whole chunk was kept, the half one was not
    for name in ("elbo", "log_px", "ess"):
        np.testing.assert_array_equal(part[name], whole[name])

def test_other_settings_are_refused(tmp_path, monkeypatch):
    model, x = toy()
    monkeypatch.setitem(gaps.PARTS_OF, "train", ("bound",))
    measure_split(tmp_path, model, "train", x, "static", QUICK)
    with pytest.raises(InputError, match="settings, images or weights differ"):
        measure_split(tmp_path, model, "train", x, "static", GapSettings(samples=41))

def test_rounding_keeps_what_is_not_a_number():
    v = np.array([-97.123456, 1e-5, 0.0, np.nan])
    np.testing.assert_allclose(round_binary(v, 16), v, rtol=2**-16)

# --- two short runs, measured and shown

@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    "Folder, study and store of three short runs that are measured."
    folder = tmp_path_factory.mktemp("gaps")
    study = grid("digits", ["vae", "gpvae", "sa-1"], seeds=1, settings=SETTINGS, name="short",
                 title="Likelihoods on short runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annealing, "_PILOT_TEMPERATURES", 3)
        store = Store(folder / "store")
        store.keep([run(spec, folder / "runs", "cpu", bar=False) for spec in study.specs])
        measure(study, store, folder / "runs", COUNTS, QUICK, device="cpu", bar=False)
    return folder, study, store

def runs_of(shown):
    return {line: runs[0] for line, runs in gap_tables.measured_runs(shown[1].results(shown[2])).items()}

def test_a_second_call_measures_nothing(shown, monkeypatch):
    folder, study, store = shown
    before = {run.row["run"]: run.arrays for run in runs_of(shown).values()}
    for name in ("measure_chunk", "sandwich"):
        monkeypatch.setattr(gaps, name, lambda *args: pytest.fail("measured again"))
    measure(study, store, folder / "runs", COUNTS, QUICK, device="cpu", bar=False)
    for run_id, arrays in before.items():
        again = store.arrays(run_id, "gaps")
        assert arrays.keys() == again.keys()
        for name in arrays:
            np.testing.assert_array_equal(arrays[name], again[name])

def test_rows_join_those_of_the_runs(shown):
    rows = shown[1].results(shown[2]).gaps
    assert rows["line"].tolist() == ["vae", "gpvae", "sa-1"] and (rows["simulated"] == 4).all()
    assert (rows["temperatures"] == 4).all() and (rows["seconds"] > 0).all()
    for run_id, of_row in zip(rows["run"], rows["iwae_1.0"]):
        assert shown[2].arrays(run_id, "gaps")["test_iwae_1.0"].mean() == pytest.approx(of_row, abs=0.01)

def test_every_method_has_the_scores_that_it_can_have(shown):
    free = {"entropy", "reconstruction", "kl", "feature_norm", "leverage"}
    runs = runs_of(shown)
    assert set(runs["vae"].scores()) == free
    assert set(runs["sa-1"].scores()) >= {"entropy", "reconstruction", "kl"}
    assert list(runs["gpvae"].scores())[:4] == list(gap_tables.PROCESS)
    scores = runs["gpvae"].scores()
    assert set(scores) == free | set(gap_tables.PROCESS)
    np.testing.assert_allclose(scores["doubt"], scores["f_relative"] / 2 + scores["g"])
    assert len(runs["gpvae"].scores("turned")["doubt"]) == 24 and runs["gpvae"].scores("train") == {}

def test_leverage_is_that_of_all_training_images(shown):
    folder, study, _ = shown
    measured = runs_of(shown)["gpvae"]
    result = open_run(folder / "runs" / measured.row["run"])
    splits = prepare_splits(load_images(result.config), result.config.binarisation)
    learned = splits.train
    if splits.train_binarisation == "stochastic":
        learned = binarise_fixed(learned, split_seed("train"))
    for split, n in (("test", 24), ("valid", 20)):
        expected = leverage(load_model(result.folder), learned, getattr(splits, split)[:n])["leverage"]
        np.testing.assert_allclose(measured.scores(split)["leverage"], expected, rtol=1e-3)

def test_kept_pictures_are_the_easiest_and_the_hardest_images(shown):
    folder, study, _ = shown
    runs = runs_of(shown)
    assert {line: set(gap_tables.pictures(run)) for line, run in runs.items()} == {
        "vae": {"amortization"}, "gpvae": {"amortization", "doubt"}, "sa-1": set()
    }
    result = open_run(folder / "runs" / runs["gpvae"].row["run"])
    splits = prepare_splits(load_images(result.config), result.config.binarisation)
    x = (255 * to_float(splits.test[:24], splits.eval_binarisation)).byte().numpy()
    pixels = gap_tables.pictures(runs["gpvae"])["doubt"]
    order = np.argsort(runs["gpvae"].scores()["doubt"], kind="stable")
    assert pixels.dtype == np.uint8 and pixels.shape == (24, 1, 8, 8)
    np.testing.assert_array_equal(pixels[0], x[order[0]])
    np.testing.assert_array_equal(pixels[-1], x[order[-1]])

def test_cells_are_the_means_of_the_images(shown):
    results, runs = shown[1].results(shown[2]), runs_of(shown)
    table, parts = gap_tables.decomposition(results), gap_tables.gap_parts(results)
    for line, run_ in runs.items():
        c = run_.split("test")
        expected = {"log p(x)": c["log_px"],
                    "total gap": c["log_px"] - c["elbo"],
                    "ELBO": c["elbo"],
                    "approximation": c["log_px"] - c["diagonal"],
                    "full covariance": c["log_px"] - c["full"],
                    "amortization": c["diagonal"] - c["elbo"]}
        for column, values in expected.items():
            assert table.loc[line, column].replace("−", "-").startswith(f"{values.mean():.2f} ±")
        assert parts.loc[line, "approximation"] + parts.loc[line, "amortization"] == pytest.approx(
            (c["log_px"] - c["elbo"]).mean()
        )
        trained = run_.gaps("train").amortization.mean()
        row = gap_tables.generalisation(results).loc[line].set_index("quantity").loc["amortization"]
        assert (
            row["test − train"]
            .replace("−", "-")
            .startswith(f"{expected['amortization'].mean() - trained:+.2f}")
        )
    assert (gap_tables.measurement(results)["not converged"] >= 0).all()
    assert gap_tables.widths(results).columns.tolist() == [f"× {w}" for w in QUICK.widths]
    assert set(gap_tables.detection(results).columns) == {"score", "turned", "noised"}

def test_the_page_says_what_the_files_say(shown):
    folder, study, store = shown
    page = render(study, store, folder / "out", "gap")
    text, notebook = page.read_text(), nbformat.read(page.with_suffix(".ipynb"), 4)
    assert "<h1" in text and "Inference gaps on short runs" in text and str(folder) not in text
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type in ("error", "stream")]
    results = study.results(store)
    for table in (gap_tables.decomposition, gap_tables.differences, gap_tables.detection):
        for cell in table(results).astype(str).to_numpy().ravel():
            assert cell in text
    assert with_interval(rankings([runs_of(shown)["gpvae"]], "approximation")["doubt", "alone"]) in text
    assert text.count("<img") == text.count('<img alt="') == 2 + 4  # two figures, two measures with two ends

def test_wrong_input_is_one_line(shown, tmp_path):
    folder, study, store = shown
    other = grid("digits", ["vae", "full"], seeds=1, settings=SETTINGS)

    def refused(match, study=study, runs=folder / "runs", counts=COUNTS, **more):
        with pytest.raises(InputError, match=match):
            measure(study, Store(tmp_path), runs, counts, QUICK, device="cpu", bar=False, **more)

    refused("full .* is not finished", other)
    refused("has no run of this seed", seed=7)
    refused("is not a folder", runs=tmp_path / "none")
    refused("test is 1", counts=COUNTS | dict(test=1))
    refused("name test, train, valid", counts=dict(test=2))
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no gap of short was measured: gpvae gap"):
        render(study, Store(tmp_path / "empty"), tmp_path, "gap")

# --- scores and gaps that are known

def made_up(knows=1.0, gap=2.0, free=0.5, n=300, seed=0):
    "A measured run; knows, free: the share of the amortization gap in the doubt, and in the free score kl."
    rng, arrays = np.random.default_rng(seed), {}
    for split in ("test", "valid"):
        amortization, approximation = rng.gamma(4.0, gap / 4, n), rng.gamma(4.0, 0.5, n)
        process = knows * amortization + 0.1 * rng.normal(size=n) + 2
        columns = dict(log_px=-93 + approximation, diagonal=np.full(n, -93.0), elbo=-93 - amortization,
                       score_f=process, score_g=process / 2, score_f_relative=process,
                       score_kl=free * amortization + rng.normal(size=n), score_entropy=rng.normal(size=n))
        arrays |= {f"{split}_{k}": v.astype(np.float32) for k, v in columns.items()}
    return MeasuredRun(pd.Series(dtype=object), arrays)

@pytest.mark.parametrize("knows, low, high", [(1.0, 0.9, 1.0), (0.0, -0.2, 0.2), (-1.0, -1.0, -0.9)])
def test_a_ranking_is_the_rank_correlation_of_the_statistics(knows, low, high):
    run_ = made_up(knows)
    score, gap = run_.scores(), run_.gaps().amortization
    ranks = rankings([run_], "amortization", draws=100)
    alone, given = (ranks["doubt", how] for how in gap_tables.HOW)
    assert alone.mean == pytest.approx(spearman(score["doubt"], gap)) and low < alone.low < alone.high <= high
    free = [name for name in score if name not in gap_tables.PROCESS]
    assert set(free) == {"kl", "entropy"}
    assert given.mean == pytest.approx(partial_correlation(score["doubt"], gap, [score[k] for k in free]))
    one = bootstrap(spearman, score["doubt"], gap, n=100)
    assert alone == pytest.approx(one)  # all scores of a draw are ranked at once
    other = rankings([run_], "approximation", draws=100)["doubt", "alone"]
    assert other.low < 0 < other.high
    assert {score for score, how in ranks if how == gap_tables.HOW[1]} == set(gap_tables.PROCESS)

def test_a_score_that_repeats_a_free_one_adds_nothing():
    run_ = made_up(knows=0.0)
    run_.arrays["test_score_g"] = run_.arrays["test_score_f_relative"] = run_.arrays[
        "test_score_kl"
    ] + np.random.default_rng(5).normal(size=300).astype(np.float32)
    ranks = rankings([run_], "amortization", draws=100)
    alone, given = (ranks["doubt", how] for how in gap_tables.HOW)
    assert alone.low > 0 and given.low < 0 < given.high

def test_seeds_are_averaged_and_images_that_were_not_measured_are_left_out():
    first, second = made_up(seed=1), made_up(seed=2)
    first.arrays["test_log_px"][:50] = np.nan
    both = rankings([first, second], "approximation", draws=50)
    rest = [spearman(r.scores()["doubt"][50:], r.gaps().approximation[50:]) for r in (first, second)]
    assert both["doubt", "alone"].mean == pytest.approx(np.mean(rest))
    assert ("leverage", "alone") not in both

def test_a_difference_leaves_out_images_that_were_not_measured():
    ours, theirs = [made_up(gap=2.0, seed=s) for s in (1, 2)], [made_up(gap=4.0, seed=3)]
    ours[0].arrays["test_elbo"][7] = np.nan
    a, b = (gap_tables.stack_gaps(runs, "amortization") for runs in (ours, theirs))
    kept = np.arange(300) != 7
    assert stacked_difference(a, b) == difference_interval(a[:, kept], b[:, kept])

@pytest.mark.parametrize("free", [2.0, -2.0])
def test_a_free_score_may_be_used_with_its_sign_turned(free):
    assert gap_tables.choose_free_score(made_up(free=free)) == ("kl", np.sign(free))

def test_a_calibrated_doubt_expects_the_gap_that_is_measured():
    run_ = made_up()
    for split in ("test", "valid"):
        gap = run_.gaps(split).amortization.astype(np.float32)
        run_.arrays.update({f"{split}_score_f_relative": gap, f"{split}_score_g": gap / 4})
    tables = gap_tables.calibration(run_)
    assert list(tables) == ["doubt", "kl"] and tables["doubt"]["images"].sum() == 300
    np.testing.assert_allclose(tables["doubt"]["expected"], tables["doubt"]["gap"], rtol=1e-4)
    assert tables["doubt"]["gap"].is_monotonic_increasing
