"""The recursive mixture: the VAE with one component, the nested density, who is moved by which term, the
bounded divergence, and a target with two modes."""
import math

import pytest
import torch
from torch import nn

from gpvae.vae import frozen
from gpvae.encoders.recursive_mixture import (RecursiveMixtureEncoder, _component_objective, _so_far,
                                              recursive_log_pi)
from gpvae.likelihoods import Gaussian, Likelihood
from gpvae.networks import mlp_decoder, mlp_trunk
from gpvae.posteriors import DiagonalGaussian, GaussianMixture, log_normal
from gpvae.study.config import RunSpec
from models import build_model
from gpvae.train_step import TrainConfig, adam, train_step
from gpvae.vae import VAE
from toys import F64, bernoulli_model, binary_images, perturb, seeded

def close(a, b, tol=1e-12): torch.testing.assert_close(a, b, rtol=tol, atol=tol)

def encoder(K=3, scale=0.5, **options):
    torch.manual_seed(0)
    return perturb(RecursiveMixtureEncoder(mlp_trunk((1, 4, 4), (8, 8)), 8, 2, n_components=K,
                                           **options).double(), scale)

def weights(model): return {k: v.detach().clone() for k, v in model.named_parameters()}

# --- the recursion --------------------------------------------------------------------------------

@pytest.mark.parametrize("K", [2, 3, 5])
def test_density_is_the_nested_formula(K):
    e, x = encoder(K, scale=0.2), binary_images(5)
    z, phi = torch.randn(7, 5, 2, generator=seeded(), dtype=F64), e.trunk(x)
    q = [head(phi).log_prob(z).exp() for head in e.components]
    parts, a = e.parts(x)
    Q = q[0]
    close(_so_far(parts[:1], a[:0]).log_prob(z), Q.log(), 1e-10)
    for m in range(1, K):
        epsilon = torch.sigmoid(e.logits(phi)[:, m - 1])
        Q = (1 - epsilon) * Q + epsilon * q[m]
        close(_so_far(parts[:m + 1], a[:m]).log_prob(z), Q.log(), 1e-10)
    close(e(x).log_prob(z), Q.log(), 1e-10)

def test_weights_sum_to_one_also_far_out():
    logit = torch.tensor([[0.3, 800., -800.], [-2., -800., -800.]], dtype=F64)
    close(recursive_log_pi(logit).exp().sum(0), torch.ones(3, dtype=F64))
    assert recursive_log_pi(logit).shape == (3, 3)
    assert torch.equal(recursive_log_pi(logit[:0]), torch.zeros(1, 3, dtype=F64))

def test_the_start():
    "Weights ε for every image; the heads of a run's first component are the VAE's."
    model, vae = (build_model(RunSpec(method=m, z_dim=2, likelihood="bernoulli",
                                      settings=(("hidden", (8, 8)),)),
                              (1, 4, 4)) for m in ("rme-3", "vae"))
    pi = model.posterior(binary_images(5, dtype=torch.float32)).log_pi.exp()
    torch.testing.assert_close(pi, torch.tensor([0.81, 0.09, 0.1])[:, None].expand(3, 5))
    assert torch.equal(model.encoder.components[0].b.weight, vae.encoder.b.weight)
    assert torch.equal(model.encoder.components[0].c.bias, vae.encoder.c.bias)

# --- one component is the VAE ---------------------------------------------------------------------

def test_one_component_is_the_vae():
    settings = (("hidden", (8, 8)),)
    specs = (RunSpec(method="vae", z_dim=2, likelihood="bernoulli", settings=settings),
             RunSpec(method="rme-2", z_dim=2, likelihood="bernoulli",
                     settings=(*settings, ("n_components", 1))))
    vae, rme = (perturb(build_model(spec, (1, 4, 4)).double(), 0.3) for spec in specs)
    x = binary_images(16)
    a, b = vae.posterior(x), rme.posterior(x)
    assert isinstance(b, DiagonalGaussian)
    close(a.mu, b.mu)
    close(a.log_sigma, b.log_sigma)
    for model in (vae, rme):
        torch.manual_seed(0)
        optimizer = adam(model, TrainConfig(lr=0.01, weight_decay=0.2))
        for beta in (0.3, 1.):
            train_step(model, optimizer, x, beta, 100, TrainConfig(n_samples=2))
    for p, q in zip(vae.parameters(), rme.parameters(), strict=True):
        close(p, q)

# --- who is moved by which term -------------------------------------------------------------------

def gaussian_model(e):
    "A likelihood with a parameter, and images on which nothing is special."
    return VAE(e, perturb(mlp_decoder(2, (1, 4, 4), (8,)).double(), 0.5), Gaussian(16).double())

def gradients(greed, beta=1., n_samples=2):
    "Of the one objective, by parameter; and the objective with its terms."
    model, x = gaussian_model(encoder(C=100., greed=greed)), binary_images(6)
    torch.manual_seed(5)
    (objective, terms), = model.objectives(x, beta, n_samples)
    objective.sum().backward()
    assert all(p.requires_grad for p in model.parameters())
    return {name: p.grad for name, p in model.named_parameters()}, objective, terms

def test_the_components_objectives_move_heads_and_trunk_and_nothing_else():
    whole, bound = gradients(0.5)[0], gradients(0.)[0]
    moved = {name for name, g in whole.items() if not torch.allclose(g, bound[name], rtol=0, atol=1e-10)}
    assert moved == {name for name in whole if name.startswith(("encoder.trunk", "encoder.components"))}
    assert all(g.abs().max() > 0 for g in bound.values())

def test_the_mixture_before_a_component_is_a_constant():
    "J_m moves the heads of m and the trunk: the last one's alone leaves the other heads."
    model, x = gaussian_model(encoder(C=100.)), binary_images(6)
    q, a = model.encoder.parts(x)
    _component_objective(model.encoder, model, x, q[2], _so_far(q[:2], a[:1]), 1., 2).sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {name
                     for name in weights(model) if name.startswith(("encoder.trunk", "encoder.components.2"))}

@pytest.mark.parametrize("greed", [0., 0.5])
def test_the_objective_is_the_bound_and_the_components_average(greed):
    model, x = gaussian_model(encoder(C=100., greed=greed)), binary_images(6)
    torch.manual_seed(5)
    (objective, terms), = model.objectives(x, 0.3, 2)
    torch.manual_seed(5)
    q, a = model.encoder.parts(x)
    expected = model.terms_of(model.posterior(x), x, 2)
    J = [_component_objective(model.encoder, model, x, q[m], _so_far(q[:m], a[:m - 1]) if m else None, 0.3, 2)
         for m in range(3)]
    close(terms.log_px_z, expected.log_px_z)
    close(terms.kl, expected.kl)
    close(objective, expected.elbo(0.3) + greed * sum(J) / 3, 1e-10)
    assert objective.shape == terms.log_px_z.shape == terms.kl.shape == (6,)

def test_constants_are_given_back():
    "Also after an error, and when the generator is dropped half way; what was frozen before stays frozen."
    model = bernoulli_model(encoder())
    first, *rest = model.decoder.parameters()
    first.requires_grad_(False)
    with pytest.raises(ZeroDivisionError), frozen(model.decoder):
        1 / 0
    steps = model.objectives(binary_images(6))
    next(steps)
    steps.close()
    assert not first.requires_grad and all(p.requires_grad for p in (*rest, *model.encoder.parameters()))

# --- the objective of a component -----------------------------------------------------------------

class Step:
    "The objective of a second component at given means, under fixed noise."
    def __init__(self, S=1):
        self.model, self.x, self.S = bernoulli_model(encoder(2)), binary_images(40), S
        self.Q = _so_far(self.model.encoder.parts(self.x)[0][:1], torch.empty(0, 40, dtype=F64))
        self.q = DiagonalGaussian(self.Q.mu[0] + torch.randn(40, 2, generator=seeded(), dtype=F64),
                                  self.Q.log_sigma[0])
        self.q.mu.requires_grad_()

    def divergence(self):
        torch.manual_seed(0)
        z, log_qz_x = self.q.rsample_and_log_prob(self.S)
        return (log_qz_x - log_normal(z, self.Q.mu[0], self.Q.log_sigma[0])).mean(0)

    def objective(self, eta, C, beta=1.):
        e = self.model.encoder
        e.eta, e.C = eta, C
        torch.manual_seed(0)
        return _component_objective(e, self.model, self.x, self.q, self.Q, beta, self.S)

    def gradient(self, value): return torch.autograd.grad(value.sum(), self.q.mu)[0]

@pytest.mark.parametrize("beta", [0.3, 1.])
def test_the_divergence_is_rewarded_up_to_its_cap(beta):
    step = Step()
    kl, C = step.divergence().detach(), step.divergence().median().item() + 1e-6
    plain = step.objective(0., 1., beta)
    close(step.objective(0.7, 1e9, beta) - plain, 0.7 * beta * kl, 1e-10)
    close(step.objective(0.7, C, beta) - plain, 0.7 * beta * kl.clamp(max=C), 1e-10)
    assert (step.objective(0.7, C, beta) > plain)[kl > 0].all()

def test_no_gradient_above_the_cap():
    step = Step()
    kl, C = step.divergence(), step.divergence().median().item() + 1e-6
    above = kl > C
    assert 10 < above.sum() < 30
    pull, plain = step.gradient(kl), step.gradient(step.objective(0., 1.))
    capped = step.gradient(step.objective(0.7, C))
    close(capped[above], plain[above])
    close(capped[~above], (plain + 0.7 * pull)[~above], 1e-10)
    assert pull[above].abs().min() > 1e-3

def test_without_weight_the_divergence_does_not_matter():
    step = Step()
    torch.manual_seed(0)
    z, _ = step.q.rsample_and_log_prob(1)
    close(step.objective(0., 1e9, 0.3), step.model.log_px_z(step.x, z).mean(0) - 0.3 * step.q.kl(), 1e-10)

# --- a target with two modes ----------------------------------------------------------------------

class Target(Likelihood):
    "A likelihood that makes the joint a given density of two modes; the decoder is the identity."
    q = GaussianMixture(torch.tensor([[[-1.2, 0.]], [[1.4, 0.6]]]),
                        torch.log(torch.tensor([[[.5, .9]], [[.7, .45]]])),
                        torch.log(torch.tensor([[.6], [.4]])))
    def log_px_z(self, eta, x): return self.q.log_prob(eta) - log_normal(eta)

def kl_to_target(q):
    axis = torch.linspace(-6, 6, 241)
    z = torch.cartesian_prod(axis, axis)[:, None]
    return ((q.log_prob(z).exp() * (q.log_prob(z) - Target.q.log_prob(z))).sum() * 0.05**2).item()

def fitted(K, **options):
    torch.manual_seed(0)
    model = VAE(RecursiveMixtureEncoder(nn.Flatten(), 1, 2, n_components=K, **options),
                nn.Identity(),
                Target())
    image = torch.ones(1, 1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(120):
        train_step(model, optimizer, image, 1., 1, TrainConfig(n_samples=16))
    with torch.no_grad():
        return kl_to_target(model.posterior(image))

def test_a_second_component_comes_closer_to_two_modes():
    one, two = fitted(1), fitted(2, C=4.)
    assert abs(one - math.log(1 / 0.6)) < 0.1 and two < 0.6 * one
