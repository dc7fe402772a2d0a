"""The Gaussian from curvature: exact on a linear model from any start, nearly the best one elsewhere, each
image alone, and no image lost to another's fault."""
import pytest
import torch
from torch import nn

from gpvae.checks import InputError
from gpvae.inference.gauss_newton import gauss_newton, local_curvature
from gpvae.likelihoods import LIKELIHOODS, Likelihood
from gpvae.networks import ConvDecoder, mlp_decoder
from gpvae.inference.best_gaussian import Climb, best_gaussian
from gpvae.posteriors import DiagonalGaussian
from gpvae.vae import VAE, LogJoint
from toys import F64, Z, Call, LinearGaussian, bernoulli_model, binary_images, perturb, seeded

def close(a, b, tol=1e-8): torch.testing.assert_close(a, b, rtol=tol, atol=tol)
def normal(*shape, seed=0): return torch.randn(shape, generator=seeded(seed), dtype=F64)
def anywhere(n, z_dim=Z): return DiagonalGaussian(3 * normal(n, z_dim), normal(n, z_dim, seed=1))

@pytest.mark.parametrize("rounds, samples", [(1, 1), (1, 2), (20, 2)])
def test_exact_on_a_linear_gaussian_model(rounds, samples):
    """From any start: noise of opposite sign cancels in the mean, and the curvature is the same everywhere. A
    single sample has the covariance alone."""
    lg = LinearGaussian()
    x = lg.images(5)
    q = gauss_newton(lg.model(lg.rough), x, anywhere(5), rounds, samples)
    close(q.L @ q.L.mT, lg.cov.expand(5, Z, Z))
    if samples > 1:
        close(q.mu, lg.mean(x))

@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("decoder", [mlp_decoder(3, (1, 8, 8), (9,)), ConvDecoder(3, (1, 8, 8), 8, 2)],
                         ids=["mlp", "conv"])
def test_gradient_and_curvature_are_those_of_the_joint(likelihood, decoder):
    "By automatic differentiation: the second derivative of a rectifier is zero almost everywhere."
    torch.manual_seed(0)
    model = VAE(Call(None), perturb(decoder.double(), 0.3), LIKELIHOODS[likelihood](64).double())
    x, z = binary_images(3, (1, 8, 8)), normal(3, 3)
    with torch.no_grad():
        gradient, curvature = local_curvature(LogJoint(model, x), z)
    for i in range(3):
        at = lambda z: model.log_joint(x[i:i + 1], z[None, None])[0, 0]
        close(gradient[i], torch.autograd.functional.jacobian(at, z[i]))
        close(curvature[i], -torch.autograd.functional.hessian(at, z[i]))

def test_its_bound_is_nearly_the_best():
    model, x = bernoulli_model(Call(None), z_dim=3), binary_images(30)
    start = anywhere(30, 3)
    eps = normal(4000, 1, 3)
    bound = lambda q: LogJoint(model, x).bound(q, eps)
    with torch.no_grad():
        best = bound(best_gaussian(model, x, start, Climb(family="full"), 2).q)
        lost, before = (best - bound(gauss_newton(model, x, start))).mean(), (best - bound(start)).mean()
    assert before > 1 and lost < 0.01 * before # what is left are the kinks of eight units

def test_images_do_not_know_of_each_other():
    model, x, start = bernoulli_model(Call(None)), binary_images(6), anywhere(6)
    whole, part = (gauss_newton(model, x, start),
                   gauss_newton(model, x[3:], DiagonalGaussian(start.mu[3:], start.log_sigma[3:])))
    close(whole.mu[3:], part.mu)
    close(whole.L[3:], part.L)

class Faulty(nn.Module):
    "A linear decoder that returns NaN where the first latent is far out."
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, z): return torch.where(z[..., :1] > 50, torch.nan, self.linear(z))

def test_an_image_whose_decoder_fails_keeps_its_start():
    lg = LinearGaussian()
    x, start = lg.images(3), anywhere(3)
    start.mu[1, 0] = 100.
    q = gauss_newton(VAE(Call(None), Faulty(lg.decoder), lg.likelihood), x, start)
    close(q.mu[[0, 2]], lg.mean(x)[[0, 2]])
    close(q.mu[1], start.mu[1])
    close(q.L[1], start.log_sigma[1].exp().diag())

class Other(Likelihood):
    def log_px_z(self, eta, x): return -(eta - x).abs().sum(-1)

def test_it_says_what_it_needs():
    lg = LinearGaussian()
    with pytest.raises(InputError,
                       match="^Other states no curvature: search for the best Gaussian instead$"):
        gauss_newton(VAE(Call(None), lg.decoder, Other()), lg.images(2), anywhere(2))
    with torch.inference_mode(), pytest.raises(InputError, match="no_grad"):
        gauss_newton(lg.model(lg.rough), lg.images(2), anywhere(2))
    with pytest.raises(InputError, match="rounds is 0"):
        gauss_newton(lg.model(lg.rough), lg.images(2), anywhere(2), 0)
