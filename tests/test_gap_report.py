"The report of the gaps: what is measured is kept, the verdict follows the numbers either way, and the page says what its files say."
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from gpvae.evaluation import ais as annealing
from gpvae.evaluation.ais import AISConfig, ais
from gpvae.checks import InputError
from gpvae.inference.best_gaussian import Climb
from gpvae.study import measure
from gpvae.study.commands import gap_command
from gpvae.study.catalogue import page
from gpvae.study.gaps import _rounded, _finished_runs, _of_seed, gap_report
from gpvae.data import binarise_fixed, prepare_splits, split_seed
from gpvae.study.measure import GapSettings, measure_run, measure_split
from gpvae.study.run import load_model, run, run_images
from gpvae.study.spec import BUDGETS, RunSpec, Settings
from gpvae.study.verdict import (Report, _refined_elbo, _closing_text, decomposition, generalisation_table, margins_text, opening, reliability,
                                 _ranking_text, read_report, _refinement_curve, refinement_curves, verdict, width_table)
from gpvae.evaluation.scores import leverage
from toys import bernoulli_model, gp_encoder, seeded

QUICK = GapSettings(AISConfig(temperatures=4, chains=4, leapfrog_steps=1, start="posterior"), Climb(steps=25), samples=40, k=10, simulated=4, refine_steps=2, chunk=16)
COUNTS = dict(test=12, train=4, valid=12)

# --- the verdict, on made-up numbers -------------------------------------------------------------------------------------------------------------

def made_up(knows=1., gap=2., free=1., n=200):
    "knows, free: part of the gap in the score f of gpvae and in the free score kl; gap: mean amortization gap of gpvae, the VAE's is 4."
    rng, images = np.random.default_rng(0), {}
    for spec, mean in (("a", 4.), ("b", gap)):
        for split in ("test", "train", "valid"):
            amortization = rng.gamma(4., mean / 4, n)
            images |= {f"{spec}_{split}_{k}": v for k, v in dict(log_px=np.full(n, -90.), diagonal=np.full(n, -93.), full=np.full(n, -92.), elbo=-93 - amortization, ess=np.ones(n), diagonal_converged=np.ones(n, bool),
                full_converged=np.arange(n) > 2, score_kl=free * amortization + rng.normal(size=n), score_entropy=rng.normal(size=n)).items()}
            if spec == "b": images[f"b_{split}_score_f"] = knows * amortization + 0.1 * rng.normal(size=n)
    return Report(pd.DataFrame({"method": ["vae", "gpvae"], "spec": ["a", "b"], "sandwich": [.1, .2], "sandwich_error": [.01, .02], "device": "cpu", "test_seconds_full": [60., 120.]}).set_index("method"), images)

judge = lambda report: verdict(report, "gpvae", draws=60)

def test_the_verdict_falls_either_way():
    yes, no = judge(made_up()), judge(made_up(knows=0.01, gap=6.))
    assert yes.ranks_better and not yes.ranks_worse and yes.closes_gap and yes.choice.best == "f" and yes.difference[0] < 0
    assert no.ranks_worse and not no.ranks_better and not no.closes_gap and no.choice.best == "kl" and no.difference[1] > 0
    assert "`gpvae` ranks the amortization gap better than every score that any VAE has**" in _ranking_text(yes) and "is smaller than that of `vae`**" in _closing_text(yes)
    assert "`gpvae` ranks the amortization gap worse than a score that any VAE has**" in _ranking_text(no) and "is larger than that of `vae`**" in _closing_text(no)

def test_the_verdict_between():
    between = judge(made_up(knows=0., free=0., gap=4.))
    assert not between.ranks_better and not between.closes_gap
    assert "it is not shown that" in _ranking_text(between) and "does not clearly differ from" in _closing_text(between) and "may be zero: `kl`, `entropy`" in margins_text(between)
    alone = made_up()
    assert "VAE was not measured" in _closing_text(judge(alone._replace(rows=alone.rows.drop("vae"))))
    with pytest.raises(InputError, match="vae has no score of a process: the verdict is about gpvae"): verdict(alone, "vae")

def test_a_free_score_may_be_used_with_its_sign_turned():
    "One that falls where the gap grows is no worse than one that rises."
    up, down = judge(made_up(knows=0.05, free=3.)), judge(made_up(knows=0.05, free=-3.))
    assert not up.ranks_better and not down.ranks_better and down.rho["kl"][0] > 0.8 and up.choice.free == down.choice.free == "kl"

def test_a_doubt_in_nats_is_judged_by_the_diagonal():
    "Scaled on validation images, a doubt that is the gap in other units expects what is measured; one that is the same for all expects the mean."
    report, rng = made_up(), np.random.default_rng(1)
    def with_doubt(doubt):
        gaps = {s: report.gaps("gpvae", s).amortization for s in ("test", "valid")}
        return report._replace(images=report.images | {f"b_{s}_score_{k}": part * doubt(g) for s, g in gaps.items() for k, part in (("f_relative", 1.), ("g", 0.25))})
    factor, t = reliability(with_doubt(lambda gap: gap / 5), "gpvae")
    assert factor == pytest.approx(5 / 0.75) and t["images"].sum() == 200
    np.testing.assert_allclose(t["expected"], t["gap"])
    factor, t = reliability(with_doubt(lambda gap: 3 + 1e-3 * rng.normal(size=len(gap))), "gpvae")
    np.testing.assert_allclose(t["expected"], report.gaps("gpvae", "valid").amortization.mean(), rtol=2e-3)
    factor, t = reliability(report, "gpvae", "f")
    assert factor == pytest.approx(1, abs=0.05) and np.abs(t["expected"] - t["gap"]).max() < 0.1

def test_three_sentences_open_the_page():
    report = made_up()
    text = opening(report, {"gpvae": judge(report)})
    question, rest = text.split("? ")
    answer, cost = rest.split(" nats per image, one seed)")
    assert question.startswith("Does the uncertainty") and answer.startswith("Here **the uncertainty of `gpvae` ranks") and answer.count("[") == 3
    assert cost.endswith(". Measuring one model took 1 to 2 minutes on cpu.")
    assert "no measured method has a score of random functions" in opening(report._replace(rows=report.rows.drop("gpvae")), {})

def test_refining_the_doubtful():
    rng = np.random.default_rng(0)
    before, gain = rng.normal(-100, 5, 50), rng.gamma(1., 2., 50)
    by_gain = _refinement_curve(before, before + gain, gain, 0.1, 1.1, extra=0.05)
    for r, ms, elbo in by_gain.to_numpy():
        assert np.isclose(elbo, before.mean() + np.sort(gain)[::-1][:round(50 * r)].sum() / 50) and np.isclose(ms, 0.1 + r + 0.05 * (0 < r < 1))
    assert (by_gain["elbo"] >= _refinement_curve(before, before + gain, None, 0.1, 1.1)["elbo"] - 1e-9).all()
    drawn = [_refined_elbo(before, before + gain, rng.normal(size=50), 0.4) for _ in range(2000)]
    assert abs(np.mean(drawn) - _refined_elbo(before, before + gain, None, 0.4)) < 4 * np.std(drawn) / 2000**0.5

def test_rounding():
    v = np.array([-97.123456, 1e-5, 0., np.nan])
    np.testing.assert_allclose(_rounded(v, 16), v, rtol=2**-16)

# --- chunks ----------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def short_pilot(monkeypatch): monkeypatch.setattr(annealing, "_PILOT_TEMPERATURES", 3)

def toy():
    x = (255 * (torch.rand(11, 1, 4, 4, generator=seeded()) < 0.5)).byte()
    return bernoulli_model(gp_encoder()).float(), x

def test_a_stopped_measurement_goes_on_to_the_same_numbers(tmp_path, monkeypatch, short_pilot):
    model, x = toy(); (tmp_path / "whole").mkdir(); (tmp_path / "part").mkdir()
    monkeypatch.setitem(measure._PARTS_OF, "train", ("bound", "annealed"))
    settings = GapSettings(QUICK.annealing, samples=20, chunk=4)
    whole = measure_split(tmp_path / "whole", model, "train", x, "static", settings)
    np.testing.assert_allclose(whole["log_px"], ais(model, x, settings.annealing).log_px.numpy(), rtol=1e-5)
    measure_split(tmp_path / "part", model, "train", x[:6], "static", settings)
    done = []
    part = measure_split(tmp_path / "part", model, "train", x, "static", settings, done.append)
    assert done == [8, 4, 4, 3, 3] # one whole chunk of two parts was kept, the half one not
    for k in ("elbo", "log_px", "ess"): np.testing.assert_array_equal(part[k], whole[k])

def test_other_settings_are_refused(tmp_path, monkeypatch):
    model, x = toy()
    monkeypatch.setitem(measure._PARTS_OF, "train", ("bound",))
    measure_split(tmp_path, model, "train", x, "static", QUICK)
    with pytest.raises(InputError, match="settings, images or weights differ"): measure_split(tmp_path, model, "train", x, "static", GapSettings(samples=41))
    with pytest.raises(InputError, match="it must hold 1"): GapSettings(widths=(2.,))

# --- two short runs, measured and shown --------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    "The folder of a report on two short runs, with its page."
    folder = tmp_path_factory.mktemp("gaps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annealing, "_PILOT_TEMPERATURES", 3)
        patch.setenv("GPVAE_RUNS", str(folder / "runs"))
        patch.setitem(BUDGETS, "smoke", Settings(n_train=200, n_valid=50, n_test=50, hidden=(16,), epochs=2))
        for method in ("vae", "gpvae"): run(RunSpec("digits", method, 10), folder / "runs", "cpu", bar=False)
        page = gap_report("digits", "smoke", ["vae", "gpvae"], 0, COUNTS, QUICK, "cpu", folder / "runs", folder, bar=False)
        yield folder, page

def test_a_second_call_measures_nothing(shown, monkeypatch):
    folder, _ = shown
    def no(*args): raise AssertionError("measured again")
    monkeypatch.setattr(measure, "_measure_chunk", no)
    for name in measure._ONCE: monkeypatch.setitem(measure._ONCE, name, no)
    for spec, result in _finished_runs(_of_seed(page("digits", "smoke", ["vae", "gpvae"]), 0), folder / "runs"):
        m = measure_run(result.folder, COUNTS, QUICK, "cpu")
        kept = read_report("digits", "smoke", folder).columns(spec.method, "test")
        np.testing.assert_allclose(m.splits["test"]["log_px"], kept["log_px"], rtol=2**-15)

def test_leverage_is_of_all_training_images(shown):
    "Measured at the end, for each split that has scores; of the images that the run was trained on, all of them."
    folder, _ = shown
    for spec, result in _finished_runs(_of_seed(page("digits", "smoke", ["vae", "gpvae"]), 0), folder / "runs"):
        (_, data), model = run_images(result.folder), load_model(result.folder)
        how = run_images(result.folder)[0].binarisation
        splits, report = prepare_splits(data, how), read_report("digits", "smoke", folder)
        learned = binarise_fixed(splits.train, split_seed("train")) if how == "stochastic" else splits.train
        for split in ("test", "valid"):
            kept = report.scores(spec.method, split)["leverage"]
            expected = leverage(model, learned, getattr(splits, split)[:len(kept)])["leverage"]
            np.testing.assert_allclose(kept, expected, rtol=1e-3)
        assert len(report.scores(spec.method, "turned")["leverage"]) == COUNTS["test"] and "leverage" not in report.scores(spec.method, "train")

def test_the_page_says_what_the_files_say(shown):
    folder, page = shown
    nb, report = nbformat.read(page, as_version=4), read_report("digits", "smoke", folder)
    outputs = [o for c in nb.cells for o in c.get("outputs", [])]
    assert page.name == "gap.ipynb" and not [o for o in outputs if o.output_type in ("error", "stream")] and str(folder) not in nbformat.writes(nb)
    v = verdict(report, "gpvae")
    assert outputs[0]["data"]["text/markdown"] == opening(report, {"gpvae": v})
    assert all(c.source.startswith("#| echo: false") for c in nb.cells if c.cell_type == "code") and nb.cells[1].source.startswith("# Gaps on ")
    assert all("#| fig-alt: " in c.source for c in nb.cells if any("image/png" in o.get("data", {}) for o in c.get("outputs", [])))
    text = " ".join(str(o.get("data", {})) for o in outputs)
    for table in (decomposition(report), generalisation_table(report), width_table(report)):
        for cell in table.astype(str).to_numpy().ravel(): assert cell in text
    assert text.count("image/png") >= 4 and "no column of letters" in text

def test_cells_are_the_means_of_the_images(shown):
    report = read_report("digits", "smoke", shown[0])
    assert report.methods == ["vae", "gpvae"] and report.with_process() == ["gpvae"] and len(report.scores("gpvae", "turned")["f"]) == COUNTS["test"]
    for m, row in report.rows.iterrows():
        c = {k: report.images[f"{row['spec']}_test_{k}"].astype(float) for k in ("log_px", "elbo", "diagonal", "full", "iwae_1.0")}
        line = decomposition(report).loc[m]
        for column, v in (("log p(x)", c["log_px"]), ("total gap", c["log_px"] - c["elbo"]), ("approximation", c["log_px"] - c["diagonal"]), ("with full covariance", c["log_px"] - c["full"]), ("amortization", c["diagonal"] - c["elbo"])):
            assert line[column].startswith(f"{v.mean():.2f} ±")
        assert line["upper − lower bound"].startswith(f"{row['sandwich']:.2f} ±") and abs(row["iwae_1.0"] - c["iwae_1.0"].mean()) < 0.01
        assert line["not converged"] == (~(report.columns(m, "test")["diagonal_converged"] & report.columns(m, "test")["full_converged"])).sum()
    for m, line in generalisation_table(report).iterrows():
        train, test = (report.columns(m, split) for split in ("train", "test"))
        for name, of in (("log p(x)", lambda c: c["log_px"]), ("total gap", lambda c: c["log_px"] - c["elbo"]), ("amortization", lambda c: c["diagonal"] - c["elbo"])):
            a, b = of(test).mean(), of(train).mean()
            assert line[name, "test"].startswith(f"{a:.2f} ±") and line[name, "train"].startswith(f"{b:.2f} ±") and line[name, "test − train"].startswith(f"{a - b:+.2f} ±")
    c, curves = report.columns("gpvae", "test"), refinement_curves(report, "gpvae")
    for k, curve in curves.items(): assert np.isclose(curve["elbo"].iloc[0], c["elbo"].mean()) and np.isclose(curve["elbo"].iloc[-1], c["refined"].mean())

def test_wrong_input_is_one_line(shown, capsys, tmp_path):
    folder, _ = shown
    def refused(*args):
        status, err = gap_command([*map(str, args), "--quiet", "--out", str(tmp_path)]), capsys.readouterr().err
        assert status == 2 and err.count("\n") == 1 and err.startswith("gpvae_gap: ")
        return err
    assert "gpvae-mean seed 0 is not finished" in refused("--runs", folder / "runs") # and says how to train it
    assert "gpvae_run --dataset digits --method vae --z_dim 10 --seed 7 --budget smoke" in refused("--runs", folder / "runs", "--methods", "vae", "--seed", 7)
    assert "is not a folder" in refused("--runs", tmp_path / "none")
    assert "did you mean 'gpvae'" in refused("--methods", "gpvea") and "did you mean 'cpu'" in refused("--budget", "cpuu")
    assert "test is 1:" in refused("--test", 1) and "start 'priors' is unknown" in refused("--start", "priors") and "refine_steps is 0" in refused("--refine_steps", 0)
    assert "settings, images or weights differ" in refused("--runs", folder / "runs", "--methods", "vae", "--device", "cpu")
    assert "is no name of a file" in refused("--runs", folder / "runs", "--page", "../evil")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="has no row of digits at budget cpu: gpvae_gap --dataset digits --budget cpu"): read_report("digits", "cpu", folder)
