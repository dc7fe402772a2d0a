"""The amortized mixture: one Gaussian where components are equal, normalised weights with a gradient, and
what mixing adds to the bound."""
import math

import pytest
import torch

from gpvae.encoders.mixture import MixtureEncoder, component_heads, mixture, separation
from gpvae.checks import InputError
from gpvae.networks import mlp_trunk
from gpvae.posteriors import DiagonalGaussian, GaussianMixture
from gpvae.study.config import RunSpec
from models import build_model
from gpvae.vae import VAE
from toys import F64, Call, assert_zero, bernoulli_model, binary_images, perturb, seeded

def close(a, b, tol=1e-12): torch.testing.assert_close(a, b, rtol=tol, atol=tol)

def encoder(scale=0.5, **options):
    torch.manual_seed(0)
    return perturb(MixtureEncoder(mlp_trunk((1, 4, 4), (8, 8)), 8, 2, **options).double(), scale)

def equal_components(K=3):
    "An encoder whose components are the first, with weights that differ."
    e = encoder(n_components=K)
    for head in e.components[1:]:
        head.load_state_dict(e.components[0].state_dict())
    return e

def test_equal_components_are_one_gaussian_in_density_and_mean():
    e, x = equal_components(), binary_images(5)
    q, one, z = e(x), e.components[0](e.trunk(x)), torch.randn(7, 5, 2, generator=seeded(), dtype=F64)
    assert (q.log_pi.max(0).values - q.log_pi.min(0).values > 0.1).all()
    close(q.log_prob(z), one.log_prob(z))
    close(q.mean, one.mean)
    close(separation(q, 10, seeded()), torch.zeros(5, dtype=F64))

def test_equal_components_have_the_bound_of_one_gaussian():
    e, x = equal_components(), binary_images(3).repeat(400, 1, 1, 1)
    model = bernoulli_model(e)
    one = VAE(Call(lambda x: e.components[0](e.trunk(x))), model.decoder, model.likelihood)
    with torch.no_grad():
        assert_zero(model.elbo(x, 20, seeded(1)) - one.elbo(x, 20, seeded(2)))

def test_weights_sum_to_one_and_density_is_the_sum_over_heads():
    e, x = encoder(n_components=3), binary_images(5)
    q, phi, z = e(x), e.trunk(x), torch.randn(7, 5, 2, generator=seeded(), dtype=F64)
    close(q.log_pi.exp().sum(0), torch.ones(5, dtype=F64))
    pi = torch.softmax(e.logits(phi), 1)
    normals = [torch.distributions.Normal(head.b(phi), head.c(phi).exp()).log_prob(z).sum(-1).exp()
               for head in e.components]
    close(q.log_prob(z), sum(pi[:, k] * n for k, n in enumerate(normals)).log(), 1e-10)

def test_gradient_of_the_bound_in_the_weights():
    """Against the closed form: the logits' gradient is π_k times the component's advantage over the mean,
    where only the weights move."""
    x = binary_images(1)
    mu, log_sigma = torch.randn(3, 1, 2, generator=seeded(), dtype=F64), torch.zeros(3, 1, 2, dtype=F64)
    logits = torch.tensor([[0.5], [0.], [-1.]], dtype=F64, requires_grad=True)
    model = bernoulli_model(Call(lambda x: GaussianMixture(mu, log_sigma, logits.log_softmax(0))))
    torch.manual_seed(0)
    grad, = torch.autograd.grad(model.elbo(x, 4000).sum(), logits)
    q = GaussianMixture(mu, log_sigma, logits.detach().log_softmax(0))
    log_w = torch.stack([(model.log_joint(x, z) - q.log_prob(z)).mean(0)
                         for z in (DiagonalGaussian(m, s).rsample_and_log_prob(40_000, seeded(1))[0]
                                   for m, s in zip(mu, log_sigma))]).detach()
    pi = q.log_pi.exp()
    torch.testing.assert_close(grad, pi * (log_w - (pi * log_w).sum(0)), rtol=0.03, atol=0.02)

def test_one_sample_of_each_component_reaches_every_parameter():
    e = encoder(n_components=3)
    bernoulli_model(e).elbo(binary_images(5), 1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in e.parameters())

def test_mixing_adds_the_separation_and_at_most_log_k():
    x, K = binary_images(4), 3
    model = bernoulli_model(encoder(scale=1., n_components=K))
    q = model.posterior(x)
    torch.manual_seed(0)
    whole = model.elbo(x, 50)
    torch.manual_seed(0)
    z = q.stratified(50)[0].split(50)
    ones = torch.stack([(model.log_joint(x, part) - DiagonalGaussian(m, s).log_prob(part)).mean(0)
                        for part, m, s in zip(z, q.mu, q.log_sigma)])
    torch.manual_seed(0)
    close(whole, (q.log_pi.exp() * ones).sum(0) + separation(q, 50), 1e-10)
    far = GaussianMixture(1000 * q.mu, q.log_sigma, torch.full_like(q.log_pi, -math.log(K)))
    close(separation(far, 50, seeded()), torch.full((4,), math.log(K), dtype=F64))

@pytest.mark.parametrize("spread", [0., 0.1, 1.])
def test_components_start_spread_apart(spread):
    torch.manual_seed(0)
    free = component_heads(3, 4, 2, 1.)
    torch.manual_seed(0)
    heads = component_heads(3, 4, 2, spread)
    for head, own in zip(heads[1:], free[1:]):
        for p, first, q in zip(head.parameters(), free[0].parameters(), own.parameters()):
            torch.testing.assert_close(p, (1 - spread) * first + spread * q)
    assert not torch.equal(free[1].b.weight, free[0].b.weight)

def test_weights_start_equal():
    model = build_model(RunSpec(method="me-4", z_dim=2, likelihood="bernoulli",
                                settings=(("hidden", (8, 8)),)),
                        (1, 4, 4))
    torch.testing.assert_close(model.posterior(binary_images(5, dtype=torch.float32)).log_pi.exp(),
                               torch.full((4, 5), 0.25))

def test_a_floor_keeps_every_component():
    """Its share of the weights is equal; at 1 all are. A component that the network gives up keeps its
    gradient."""
    model, x = bernoulli_model(encoder(n_components=3)), binary_images(5)
    free = model.posterior(x).log_pi.exp()
    for floor in (0.3, 1.):
        model.encoder.floor = floor
        close(model.posterior(x).log_pi.exp(), (1 - floor) * free + floor / 3)
    model.encoder.floor = 0.3
    model.encoder.logits.bias.data[0] = -1000.
    model.elbo(x).sum().backward()
    assert model.encoder.components[0].b.weight.grad.abs().sum() > 0
    with pytest.raises(InputError, match="floor is 2"):
        encoder(n_components=2, floor=2.)

def test_mixture_of_some_gaussians():
    q = [DiagonalGaussian(torch.randn(5, 2, dtype=F64), torch.randn(5, 2, dtype=F64)) for _ in range(3)]
    m = mixture(q, torch.full((3, 5), -math.log(3), dtype=F64))
    for k in range(3):
        assert torch.equal(m.mu[k], q[k].mu) and torch.equal(m.log_sigma[k], q[k].log_sigma)
