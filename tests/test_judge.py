"""The report on a model: its numbers are those of the estimators, its faults those that were planted."""
import numpy as np
import pandas as pd
import pytest
import torch
from toys import bernoulli_model

from gpvae.checks import InputError
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.evaluation.gap import measure_gaps
from gpvae.evaluation.iwae import evaluate
from gpvae.inference.best_gaussian import Climb
from gpvae.judge import Effort, find_faults, judge
from gpvae.networks import mlp_trunk
from gpvae.study.cli import main

MODULE = """
import torch
from gpvae import AmortizedEncoder, Bernoulli, VAE, mlp_decoder, mlp_trunk


def load_model():
    torch.manual_seed(0)
    encoder = AmortizedEncoder(mlp_trunk((1, 4, 4), (8,)), 8, 2)
    return VAE(encoder, mlp_decoder(2, (1, 4, 4), (8,)), Bernoulli())
"""

EFFORT = Effort(k=20, gaps=10, likelihoods=20, samples=50, chunk=5, tolerance=1.)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return bernoulli_model(AmortizedEncoder(mlp_trunk((1, 4, 4), (8,)), 8, 2), z_dim=2).float()


@pytest.fixture(scope="module")
def x():
    return (torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5).to(torch.uint8) * 255


@pytest.fixture(scope="module")
def report(model, x):
    return judge(model, x, x[:12], effort=EFFORT, bar=False)


def test_the_numbers_are_those_of_the_estimators(model, x, report):
    bounds = evaluate(model, x, 20)
    gaps = measure_gaps(model, x[:5], how=Climb(), samples=50, parts=("bound", "diagonal"))
    rows = report.rows.query("split == 'test'")
    np.testing.assert_array_equal(rows["iwae"], bounds.iwae)
    np.testing.assert_array_equal(rows["amortization"][:5], gaps.amortization)
    assert rows["amortization"][10:].isna().all() and rows["log_px"].notna().sum() == 20
    table = report.table["test"]
    assert table.loc["ELBO", "value"] == pytest.approx(bounds.elbo.mean().item())
    assert table.loc["gap: amortization", "data"] == 10
    assert table.loc["log p(x)", "value"] >= table.loc["ELBO", "value"]
    assert (report.costs > 0).all(axis=None)


def test_the_gaps_and_the_information_add_up(report):
    gaps = report.rows.dropna(subset=["amortization", "log_px"])
    np.testing.assert_allclose(gaps["amortization"] + gaps["approximation"], gaps["total"])
    value = report.table["test"]["value"]
    parts = value["information I(x; z)"] + value["KL of the aggregate posterior"]
    assert parts == pytest.approx(value["KL(q(z|x) ‖ p(z))"])


def changed(measured, **values):
    return measured | {name: np.asarray(value) for name, value in values.items()}


PLANTED = {  # what is measured -> a part of the fault that is told
    "encoder dead": (dict(encoder_dead=0.46), "46 % of the encoder's units never fire"),
    "decoder dead": (dict(decoder_dead=0.2), "20 % of the decoder's units never fire"),
    "idle latents": (dict(variance=[0.5, 1e-4]), "1 of 2 latents are not used"),
    "no estimator": (dict(converged=False, log_px_error=3.), "may be too low by 3 nats"),
    "weights": (dict(ess=np.ones(24)), "effective sample size below 1.0 of 20"),
    "a step": (dict(step=np.full(10, 2.)), "natural-gradient step at test time wins 2.0 nats"),
    "no bound": (dict(elbo=np.full(24, -np.inf)), "24 of 24 data have no finite bound"),
    "prior": (dict(kl=np.full(24, 9.), information=1.), "lies 8.0 nats from the prior"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_told_and_nothing_else_changes(report, name):
    values, message = PLANTED[name]
    fine = dict(encoder_dead=0., decoder_dead=0., variance=[0.5, 0.5], converged=True, ess=np.full(24, 15.),
                step=np.zeros(10), information=report.splits["test"]["kl"].mean())
    before = changed(report.splits["test"], **fine)
    told = [set(find_faults({"test": split}, EFFORT)) for split in (before, changed(before, **values))]
    assert any(message in fault for fault in told[1] - told[0])
    assert not any(message in fault for fault in told[0])


@pytest.mark.parametrize(("seen", "message"), [(0.3, "overfits; `refit`"), (5., "on its own training data")])
def test_a_gap_on_training_data_decides_the_advice(report, seen, message):
    test = report.splits["test"]
    lost = {"test": 5., "train": seen}
    splits = {name: changed(test, diagonal=test["bound"] + gap) for name, gap in lost.items()}
    assert any(message in fault for fault in find_faults(splits, EFFORT))


def test_a_killed_call_continues_and_another_model_is_refused(model, x, report, tmp_path, monkeypatch):
    def stop(*args, **more): raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr("gpvae.judge.log_likelihood", stop)
        with pytest.raises(KeyboardInterrupt):
            judge(model, x, effort=EFFORT, path=tmp_path, bar=False)
    with monkeypatch.context() as patch:
        patch.setattr("gpvae.judge.measure_gaps", stop)
        patch.setattr("gpvae.judge.evaluate", stop)
        again = judge(model, x, effort=EFFORT, path=tmp_path, bar=False)
    pd.testing.assert_frame_equal(again.rows, report.rows.query("split == 'test'"))
    model.decoder[0].bias.data += 0.1
    try:
        with pytest.raises(InputError, match="another model"):
            judge(model, x, effort=EFFORT, path=tmp_path, bar=False)
    finally:
        model.decoder[0].bias.data -= 0.1


def test_a_page_names_the_faults(report, tmp_path):
    page = report.to_html(tmp_path / "report.html").read_text()
    assert "data:image/png" in page and "gap: amortization" in page and repr(report).count("\n") >= 1
    assert all(fault.split(":")[0].replace("'", "&#x27;") in page for fault in report.faults)


@pytest.mark.parametrize(("values", "message"), [
    (dict(k=1), "k is 1"), (dict(gaps=0), "gaps is 0"), (dict(chunk=0), "chunk is 0"),
])
def test_wrong_numbers_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Effort(**values)


def test_few_data_are_refused(model, x):
    with pytest.raises(InputError, match="test has 9 data"):
        judge(model, x[:9], bar=False)


def test_the_command_judges_a_model_of_the_current_folder(x, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_vae.py").write_text(MODULE)
    np.savez(tmp_path / "data.npz", x_test=x.numpy()[:12], labels=np.arange(12))
    effort = "--k 20 --gaps 5 --likelihoods 12 --quiet".split()
    assert main(["judge", "own_vae:load_model", "data.npz", *effort]) == 0
    printed = capsys.readouterr().out
    assert "gap: amortization" in printed and printed.strip().endswith(str(tmp_path / "judge.html"))
    assert (tmp_path / "judge.html").stat().st_size > 10_000
    np.savez(tmp_path / "other.npz", images=x.numpy())
    (tmp_path / "text.npz").write_text("no arrays")
    for model, data, message in (
        ("own_vae", "data.npz", "not MODULE:FUNCTION"),
        ("own_vae:nothing", "data.npz", "no attribute"),
        ("nowhere:f", "data.npz", "No module named"),
        ("own_vae:load_model", "none.npz", "No such file"),
        ("own_vae:load_model", "other.npz", "has no x_test"),
        ("own_vae:load_model", "text.npz", "no .npz"),
    ):
        assert main(["judge", model, data]) == 2
        assert message in capsys.readouterr().err
