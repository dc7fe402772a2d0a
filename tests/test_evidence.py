"""log p(x) to a tolerance: errors that hold against exact answers, the cheapest estimator that will do, noise
that the choice has not seen, and words where nothing will do."""
import math
import warnings
from functools import partial

import pytest
import torch

from gpvae.evaluation import likelihood as evidence
from gpvae.evaluation.ais import STARTS
from gpvae.checks import InputError
from gpvae.evaluation.likelihood import Estimator, _ladder, _reference, log_likelihood
from gpvae.inference.best_gaussian import Climb
from gpvae.likelihoods import Likelihood
from gpvae.posteriors import DiagonalGaussian
from gpvae.vae import VAE
from toys import F64, Z, Call, LinearGaussian, bernoulli_model, binary_images

class Unit(LinearGaussian):
    "The linear-Gaussian model on images within [0, 1]."
    def unit(self, n): return self.images(n).clamp(0, 1)
    def off(self, x): return self.rough(x, shift=0.8, width=0.4)

class NoCurvature(Likelihood):
    "Gaussian pixels of a likelihood that states its value alone."
    def __init__(self, likelihood):
        super().__init__()
        self.of = likelihood

    def log_px_z(self, eta, x): return self.of.log_px_z(eta, x)
    def sample(self, eta, generator=None): return self.of.sample(eta, generator)

def uncurved(model): return VAE(model.encoder, model.decoder, NoCurvature(model.likelihood)).double()

@pytest.fixture
def short(monkeypatch):
    "References of few temperatures, and short searches: the model is linear."
    monkeypatch.setattr(evidence, "_TEMPERATURES", (8, 16))
    monkeypatch.setattr("gpvae.evaluation.ais.Climb", partial(Climb, steps=100))

def found(model, x, *args, **options):
    with torch.no_grad():
        return log_likelihood(model, x, *args, binarisation="floats", **options)

def test_within_the_tolerance_of_the_exact_answer(short):
    lg = Unit()
    x = lg.unit(60)
    r = found(lg.model(lg.off), x, 0.1)
    assert r.converged and r.error <= 0.1 and abs((r.log_px - lg.log_px(x)).mean()) < 0.1
    assert list(r.tried)[-1] == r.estimator
    assert all(error > 0.1 for e, error in r.tried.items() if e != r.estimator)
    assert r.log_px.dtype == F64 and r.log_px.shape == (60,)

@pytest.mark.parametrize("curved", [True, False])
def test_no_error_is_reported_below_what_an_estimator_lacks(curved, short):
    "Every estimator of the ladder, against the exact answer on other images; with and without a curvature."
    lg = Unit()
    x = lg.unit(200)
    model = lg.model(lg.off)
    if not curved:
        model = uncurved(model)
    with torch.no_grad():
        reference = _reference(model, x[:40], "floats", 0.1, None, 1, {})
        for e, error in evidence._tried(model, x[:40], "floats", reference, 2):
            lack = lg.log_px(x) - e(model, x, "floats", 3)
            assert lack.mean() < error + 3 * lack.std() / 40**0.5 + 0.02, e
            if e.proposal != "posterior":
                break
    curved_ones = {"posterior", "newton", "curvature", "several", "best"}
    assert {e.proposal for e in _ladder(model)} == (curved_ones if curved
                                                    else {"posterior", "step", "best"})


def test_the_reference_of_a_bent_model_is_no_better_than_it_says():
    "Against importance sampling with very many samples, on a model of binary pixels."
    model, x = (
        bernoulli_model(Call(lambda x: DiagonalGaussian(x.new_zeros(len(x), 2), x.new_zeros(len(x), 2)))),
        binary_images(24),
    )
    with torch.no_grad():
        many = Estimator("posterior", 10_000)(model, x, "floats")
        r = _reference(model, x, "floats", 0.2, None, 1, {})
    assert math.isfinite(r.error) and (many - r.log_px).mean() < r.error + 0.05

def test_the_cheapest_is_tried_first():
    model = Unit().model(None)
    rows = [e.rows(Z) for e in _ladder(model)]
    assert rows == sorted(rows) and _ladder(model)[0] == Estimator(
        "newton", 30
    )  # of few latents a round costs little
    assert _ladder(uncurved(model))[0] == Estimator("posterior", 100)
    assert (Estimator("posterior", 30).rows(20) < Estimator("step", 30).rows(20)
            < Estimator("newton", 30).rows(20) < Estimator("curvature", 30).rows(20))
    assert (Estimator("curvature", 30).rows(20) < Estimator("best", 30).rows(20)
            < Estimator("best", 8, temperatures=10).rows(20))


def test_a_step_goes_half_of_the_way_and_two_rounds_all_of_it():
    "Exactly, where the posterior is a Gaussian that the encoder has but for the mean."
    lg = Unit(orthogonal=True)
    x = lg.unit(20)
    model, exact = lg.model(lambda x: lg.rough(x, shift=0.8, width=1.)), lg.mean(x)
    q, moved, found = (STARTS[name](model, x) for name in ("posterior", "step", "newton"))
    torch.testing.assert_close(moved.mu - exact, 0.5 * (q.mu - exact))
    torch.testing.assert_close((moved.log_sigma, found.mu), (q.log_sigma, exact))
    torch.testing.assert_close(Estimator("newton", 2)(model, x, "floats"), lg.log_px(x))

def test_an_exact_encoder_is_enough(short):
    lg = Unit(orthogonal=True)
    x = lg.unit(40)
    r = found(uncurved(lg.model(lambda x: lg.rough(x, shift=0., width=1.))), x, 0.1)
    assert r.estimator == Estimator("posterior", 100) and len(r.tried) == 1
    torch.testing.assert_close(r.log_px, lg.log_px(x))

def test_the_seed_decides_and_the_choice_has_noise_of_its_own(short, monkeypatch):
    lg, seeds = Unit(), []
    model, x = lg.model(lg.off), lg.unit(20)
    a, b, other = (found(model, x, 2., seed=s) for s in (3, 3, 4))
    assert torch.equal(a.log_px, b.log_px) and a.tried == b.tried and not torch.equal(a.log_px, other.log_px)
    call = Estimator.per_image
    monkeypatch.setattr(Estimator, "per_image", lambda self, model, x, kind, seed, *rest: (
        seeds.append(seed) or call(self, model, x, kind, seed, *rest)
    ))
    found(model, x, 2., seed=3)
    *before, last = seeds
    assert last == 3 and last not in before and len(set(before)) >= 2 # of the reference, and of what is tried

def test_words_where_nothing_will_do(short, monkeypatch):
    model, x = (
        bernoulli_model(Call(lambda x: DiagonalGaussian(x.new_ones(len(x), 2), x.new_zeros(len(x), 2)))),
        binary_images(10),
    )
    monkeypatch.setattr(evidence, "_ladder",
                        lambda model: [Estimator("posterior", 10), Estimator("posterior", 20)])
    with pytest.warns(UserWarning,
                      match="^no estimator is known to reach 0.0001 nats: the mean may be too low by "):
        r = found(model, x, 1e-4)
    assert not r.converged and r.error > 1e-4 and r.estimator in r.tried

def test_a_reference_that_is_not_sure_is_enough_for_nothing(monkeypatch):
    lg = Unit()
    x = lg.unit(10)
    monkeypatch.setattr(evidence, "_reference",
                        lambda *rest: evidence._Reference(lg.log_px(x), 0.5))
    monkeypatch.setattr(evidence, "_ladder", lambda model: [Estimator("curvature", 30)])
    with pytest.warns(UserWarning, match="0.5 of them because the reference itself is not sure$"):
        assert not found(lg.model(lg.off), x, 0.1).converged

def test_a_faulty_estimate_is_no_success(short, monkeypatch):
    "NaN compares as nothing: it must not pass for a small error."
    lg = Unit()
    x = lg.unit(10)
    monkeypatch.setattr(Estimator, "__call__",
                        lambda self, model, x, *rest, **named: torch.full((len(x),), math.nan))
    monkeypatch.setattr(evidence, "_reference", lambda *rest: evidence._Reference(lg.log_px(x), 0.))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        r = found(lg.model(lg.off), x)
    assert not r.converged and r.error == math.inf

def test_an_estimate_above_the_reference_is_no_credit(monkeypatch):
    "It proves that the reference is too low by as much: the error is at least that."
    lg = Unit()
    x = lg.unit(20)
    reference = evidence._Reference(lg.log_px(x) - 3., 0.)
    monkeypatch.setattr(evidence, "_ladder", lambda model: [Estimator("curvature", 30)])
    with torch.no_grad():
        [(_, error)] = evidence._tried(lg.model(lg.off), x, "floats", reference, 1)
    assert 2.9 < error < 3.2

def test_bad_input():
    lg = Unit()
    model, x = lg.model(lg.off), lg.unit(4)
    for options, words in (({"tolerance": 0.0}, "tolerance is 0"),
                           ({"pilot": 1}, "pilot is 1"),
                           ({"tolerance": math.nan}, "tolerance is nan")):
        with pytest.raises(InputError, match=words):
            found(model, x, **options)
    with pytest.raises(InputError, match="images is 1"):
        found(model, x[:1])
    with pytest.raises(InputError, match="pixels are float64"), warnings.catch_warnings():
        log_likelihood(model, x, binarisation="none")
    with pytest.raises(InputError, match="proposal 'curvatur' is unknown"):
        Estimator("curvatur")
    with pytest.raises(InputError, match="proposal 'prior' is unknown"):
        Estimator("prior")
