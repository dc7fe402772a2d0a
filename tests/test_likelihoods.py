"The contract of a likelihood: one's own class, and a module that was written elsewhere."
import copy
from functools import partial

import pytest
import torch
from torch import nn

from gpvae.adapters import adapt
from gpvae.checks import InputError
from gpvae.evaluation.ais import AISConfig, ais
from gpvae.inference.gauss_newton import gauss_newton
from gpvae.likelihoods import Gaussian, Likelihood, as_likelihood
from gpvae.vae import VAE
from toys import Call, LinearGaussian

close = partial(torch.testing.assert_close, check_dtype=False)


class Own(Likelihood):
    "Gaussian pixels of scale 0.3, with nothing but their log-likelihood."
    def log_px_z(self, eta, x): return torch.distributions.Normal(eta, 0.3).log_prob(x).sum(-1)


class Plain(nn.Module):
    "The same, written without this package; its parameter is in its state."
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.3).log())

    def log_px_z(self, eta, x):
        return torch.distributions.Normal(eta, self.log_scale.exp()).log_prob(x).sum(-1)


class PlainCurved(Plain):
    "With the two derivatives."
    def score(self, eta, x): return (x - eta) / self.log_scale.exp()**2
    def curvature(self, eta): return (-2 * self.log_scale).exp().expand(eta.shape)


KINDS = {"own": (Own, False), "plain": (Plain, False), "curved": (PlainCurved, True)}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_gaussian(kind):
    make, curved = KINDS[kind]
    likelihood, toy = as_likelihood(make()).double(), LinearGaussian()
    assert likelihood.has_curvature == curved
    x, model = toy.images(3), toy.model(toy.rough)
    z = torch.randn(2, 3, model.z_dim, dtype=torch.float64)
    scaled = Gaussian(x[0].numel(), init_scale=0.3).double()
    log_px_z, gradient = VAE(model.encoder, model.decoder, likelihood).log_px_z_and_gradient(x, z)
    expected = VAE(model.encoder, model.decoder, scaled).log_px_z_and_gradient(x, z)
    close(log_px_z, expected[0])
    close(gradient, expected[1])


def test_the_default_score_can_be_differentiated_further():
    eta = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    x = torch.zeros(2, 3, dtype=torch.float64)
    second, = torch.autograd.grad(Own().score(eta, x).sum(), eta)
    close(second, torch.full_like(eta, -1 / 0.3**2))
    with torch.no_grad():
        assert not Own().score(eta, x).requires_grad


def test_a_module_keeps_its_parameters_and_can_be_copied():
    plain = PlainCurved()
    likelihood = as_likelihood(plain)
    assert list(likelihood.parameters()) == [plain.log_scale] and as_likelihood(likelihood) is likelihood
    twin = copy.deepcopy(likelihood)
    twin.module.log_scale.data.fill_(0.)
    close(twin.curvature(torch.zeros(2, 3)), torch.ones(2, 3))
    assert plain.log_scale.item() != 0


def test_what_is_not_written_says_so():
    toy = LinearGaussian()
    model = VAE(Call(None), toy.decoder, Own())
    with pytest.raises(InputError, match="^Own states no curvature: search for the best Gaussian instead$"):
        gauss_newton(model, toy.images(2), toy.rough(toy.images(2)))
    with pytest.raises(InputError, match="^Own states no sample"):
        model.draw(torch.zeros(1, model.z_dim, dtype=torch.float64), (1, 2, 4))
    with pytest.raises(InputError, match="^Own states no mean"):
        Own().mean(torch.zeros(1, 2))


def test_what_is_no_likelihood_is_refused():
    for what in (nn.Identity(), torch.distributions.Normal(0, 1), None):
        with pytest.raises(InputError, match="pass a module with log_px_z"):
            as_likelihood(what)


@pytest.mark.parametrize("kind", ["plain", "curved"])
def test_a_plain_module_works_through_adapt(kind):
    toy, plain = LinearGaussian(), KINDS[kind][0]().double()
    x = toy.images(4).clamp(0, 1)
    encode = lambda x: (lambda q: (q.mu, q.log_sigma))(toy.rough(x))
    model = adapt(encode, toy.decoder, plain, 2, x.shape[1:], scale="log_sigma", module=nn.Identity())
    assert model.likelihood.module is plain and model.likelihood.has_curvature == KINDS[kind][1]
    estimate = ais(model, x, AISConfig(10, 8, 2, seed=0), "floats")
    assert estimate.log_px.isfinite().all()
