"""Images and models that estimators cannot take whole: the rest is kept, a warning names what is missing."""
import math
import warnings

import pytest
import torch
from torch import nn

from gpvae.checks import InputError
from gpvae.evaluation.ais import AISConfig, ais
from gpvae.evaluation.iwae import PerImage, evaluate, pareto_k, tail_length
from gpvae.evaluation.likelihood import log_likelihood
from gpvae.inference.gauss_newton import gauss_newton, local_curvature
from gpvae.inference.starts import several_starts
from gpvae.posteriors import FullGaussian, GaussianMixture, check_values
from gpvae.vae import VAE, LogJoint
from toys import Call, LinearGaussian, seeded

class Unit(LinearGaussian):
    "Its images within [0, 1]."
    def unit(self, n): return self.images(n).clamp(0, 1)

class Identity(torch.autograd.Function):
    "A linear layer's output through a function without forward derivatives."
    @staticmethod
    def forward(ctx, y): return y.clone()
    @staticmethod
    def backward(ctx, g): return g

class Own(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear
    def forward(self, z): return Identity.apply(self.linear(z))

class Outside(Own):
    def forward(self, z): return torch.from_numpy(self.linear(z.detach()).detach().numpy())

def test_one_bad_image_loses_no_other():
    lg = Unit()
    x = lg.unit(6)
    def failing(x):
        q = lg.rough(x)
        if (x[:, 0, 0, 0] == 0.123).any():
            raise torch.linalg.LinAlgError("not positive definite")
        return q
    x[2, 0, 0, 0] = 0.123
    with pytest.warns(UserWarning, match=r"not finite for 1 of 6 images \(2\)"):
        r = evaluate(lg.model(failing), x, 50, "floats")
    assert r.iwae.isfinite().tolist() == [True, True, False, True, True, True]

def test_a_fault_of_every_image_is_an_error():
    lg = Unit()
    def failing(x): raise RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(lg.model(failing), lg.unit(3), 5, "floats")

def test_half_precision_is_refused():
    lg = Unit()
    model = lg.model(lg.rough).bfloat16()
    for measure in (lambda: evaluate(model, lg.unit(2).float(), 5, "floats"),
                    lambda: log_likelihood(model, lg.unit(2).float(), binarisation="floats")):
        with pytest.raises(InputError, match="model is of bfloat16"):
            measure()

def test_double_precision_takes_single_images():
    lg = Unit()
    assert evaluate(lg.model(lg.rough), lg.unit(2).float(), 5, "floats").iwae.isfinite().all()

@pytest.mark.parametrize("decoder", [Own, Outside])
def test_curvature_without_forward_derivatives(decoder):
    lg = Unit()
    x, z = lg.images(4), torch.randn(4, 2, generator=seeded(0), dtype=torch.float64)
    other = VAE(Call(lg.rough), decoder(lg.decoder), lg.likelihood, 2)
    with torch.no_grad():
        pair = (local_curvature(LogJoint(model, x), z) for model in (other, lg.model(None)))
        for a, b in zip(*pair):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

def test_the_ladder_goes_on_without_annealing():
    lg = Unit()
    x = lg.unit(12)
    model = VAE(Call(lg.rough), Outside(lg.decoder), lg.likelihood, 2)
    with pytest.warns(UserWarning, match="was estimated without annealing from several"):
        r = log_likelihood(model, x, 0.1, "floats")
    assert r.converged and "annealing from several" in r.missing
    assert abs((r.log_px - lg.log_px(x)).mean()) < 0.1

def test_an_encoder_that_fails_starts_at_the_prior():
    lg = Unit()
    x = lg.images(3)
    start = lg.rough(x)
    start.mu[1] = math.nan
    q = gauss_newton(lg.model(None), x, start)
    torch.testing.assert_close(q.mu, lg.mean(x))

def test_k_hat_sees_the_tail_alone():
    log_w = torch.randn(4, 400, generator=seeded(1), dtype=torch.float64)
    log_w *= torch.tensor([[0.1], [1.], [3.], [6.]])
    k_hat = pareto_k(log_w.topk(tail_length(400), 1).values, 400)
    from arviz_stats.base import array_stats
    whole = torch.as_tensor(array_stats.psislw(-log_w.numpy())[1])
    torch.testing.assert_close(k_hat, whole, atol=1e-6, rtol=1e-6)
    assert k_hat[0] < 0.7 < k_hat[3]

def test_monte_carlo_error():
    ess = torch.tensor([50., 100.]).double()
    r = PerImage(ess, ess, ess, ess[:, None])
    assert abs(r.monte_carlo_error(100) - (0.02 - 0.01)**0.5 / 2) < 1e-12

def test_starts_won_is_known_for_annealing_from_several():
    lg = Unit()
    x = lg.unit(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        r = ais(lg.model(lg.rough), x, AISConfig(20, 8, 2, start="several"), "floats")
    assert r.starts_won == 0 and abs((r.log_px - lg.log_px(x)).mean()) < 0.1

def test_an_image_alone_has_the_same_starts():
    lg = Unit()
    x = lg.images(4)
    whole, part = several_starts(lg.model(lg.rough), x), several_starts(lg.model(lg.rough), x[2:])
    torch.testing.assert_close(whole.q.mu[:, 2:], part.q.mu)
    assert isinstance(whole.q.heaviest, FullGaussian)

@pytest.mark.parametrize("q, words", [
    (FullGaussian(torch.zeros(2, 2), torch.ones(2, 2, 2)), "above its diagonal"),
    (FullGaussian(torch.zeros(2, 2), -torch.eye(2).expand(2, 2, 2)), "not positive"),
    (GaussianMixture(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), torch.zeros(2, 3)), "0.693 nats"),
])
def test_values_of_a_posterior_that_is_no_density(q, words):
    with pytest.raises(InputError, match=words):
        check_values(q)

def test_values_of_a_posterior_that_is_one():
    check_values(FullGaussian(torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2)))
    check_values(GaussianMixture(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), torch.full((2, 3), 0.5).log()))
