"Other priors than N(0, I), with log p(x) in closed form or by quadrature: every estimator within its error."
import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import (Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal,
                                 StudentT)

from gpvae.adapters import adapt
from gpvae.checks import InputError
from gpvae.dreams import sample_images
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.encoders.laplace import LaplaceEncoder
from gpvae.encoders.natural_step import NaturalStep, with_natural_step
from gpvae.encoders.semi_amortized import SemiAmortized
from gpvae.evaluation.ais import AISConfig, ais, sandwich, simulate
from gpvae.evaluation.gap import measure_gaps
from gpvae.evaluation.iwae import evaluate
from gpvae.evaluation.likelihood import log_likelihood
from gpvae.evaluation.scores import scores
from gpvae.inference.best_gaussian import Climb
from gpvae.inference.gauss_newton import gauss_newton
from gpvae.likelihoods import Bernoulli, Gaussian
from gpvae.networks import mlp_decoder, mlp_trunk
from gpvae.posteriors import DiagonalGaussian, FullGaussian, GaussianMixture
from gpvae.priors import GaussianPrior, StandardNormal, as_prior
from gpvae.training import TrainConfig, refit, train
from gpvae.vae import VAE
from toys import Call, LinearGaussian, SHAPE, Z, assert_zero, seeded

F64 = torch.float64
LG = LinearGaussian()
MEANS = torch.tensor([[1.5, 0.], [-1., 1.], [0., -2.]], dtype=F64)
WIDTHS = torch.tensor([[0.5, 0.8], [0.7, 0.4], [1.2, 0.6]], dtype=F64)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=F64)

def learned():
    prior = GaussianPrior(Z).double()
    prior.mean.data.copy_(MEANS[0])
    prior.log_scale.data.copy_(WIDTHS[0].log())
    return prior

def mixture():
    return MixtureSameFamily(Categorical(SHARES), Independent(Normal(MEANS, WIDTHS), 1))

class Vamp(nn.Module):
    "The mixture of the posteriors at pseudo-inputs (Tomczak & Welling 2018)."
    def __init__(self):
        super().__init__()
        self.inputs = nn.Parameter(LG.images(4, seed=9).flatten(1))
        self.encode = nn.Linear(6, Z).double()

    def law(self):
        mean = self.encode(self.inputs)
        parts = Independent(Normal(mean, 0.5 + torch.sigmoid(mean)), 1)
        return MixtureSameFamily(Categorical(mean.new_ones(len(mean))), parts)

    def log_prob(self, z): return self.law().log_prob(z)
    def sample(self, n): return self.law().sample((n,))

class Lazy(nn.Module):
    "Called, it is a distribution, as the flows of zuko are."
    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(MEANS[1].clone())

    def forward(self): return Independent(Normal(self.mean, WIDTHS[1]), 1)

torch.manual_seed(0)
VAMP = Vamp()
COVARIANCE = torch.tensor([[1., 0.6], [0.6, 0.8]], dtype=F64)
PRIORS = { # what is passed, and its density
    "learned": (learned, lambda: MultivariateNormal(MEANS[0], WIDTHS[0].square().diag())),
    "correlated": (lambda: MultivariateNormal(MEANS[2], COVARIANCE),) * 2,
    "mixture": (mixture, mixture),
    "VampPrior": (lambda: copy.deepcopy(VAMP), VAMP.law),
    "lazy": (Lazy, lambda: Independent(Normal(MEANS[1], WIDTHS[1]), 1)),
    "heavy tails": (lambda: StudentT(torch.tensor(5., dtype=F64)),
                    lambda: Independent(StudentT(torch.full((Z,), 5., dtype=F64)), 1)),
}

def truth(name, x, n=400, width=12.):
    "log p(x) by quadrature on a grid of latents."
    axis = torch.linspace(-width, width, n, dtype=F64)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_pz = PRIORS[name][1]().log_prob(z)
        log_px = torch.stack([Normal(z @ LG.A.T + LG.a, LG.s).log_prob(row).sum(-1) for row in x.flatten(1)])
    return torch.logsumexp(log_px + log_pz, 1) + 2 * math.log(2 * width / (n - 1))

def rough(x):
    "Gaussians at the exact posterior under N(0, I), wider."
    mu = LG.mean(x)
    return DiagonalGaussian(mu, LG.cov.diagonal().sqrt().log().expand_as(mu) + 0.3)

def model_of(name, encoder=None):
    return VAE(encoder or Call(rough), LG.decoder, LG.likelihood, prior=PRIORS[name][0]())

def images(name, n=4):
    return simulate(model_of(name), n, SHAPE, seed=3)[0].clamp(0, 1)

ANNEALING = {
    "prior": AISConfig(temperatures=30, chains=8),
    "curvature": AISConfig(temperatures=8, chains=8, start="curvature"),
}

@pytest.mark.parametrize("name", PRIORS)
def test_importance_sampling_and_annealing_give_the_truth(name):
    model, x = model_of(name), images(name)
    exact = truth(name, x)
    r = evaluate(model, x, 5000)
    assert (r.iwae - exact).abs().max() < 0.1 and (r.elbo < exact).all()
    for config in ANNEALING.values():
        found = ais(model, x, config)
        assert ((found.log_px - exact).abs() < 5 * found.error(8) + 0.1).all()

@pytest.mark.parametrize("name", ["learned", "mixture"])
def test_gaps_and_log_likelihood_give_the_truth(name):
    model, x = model_of(name), images(name)
    exact = truth(name, x)
    gaps = measure_gaps(model, x, ANNEALING["curvature"], Climb(steps=100), samples=2000)
    assert abs(gaps.log_px - exact.numpy()).max() < 0.4 # eight chains
    assert (gaps.full >= gaps.diagonal - 0.05).all() and (gaps.diagonal >= gaps.elbo - 0.05).all()
    assert (gaps.full <= exact.numpy() + 0.05).all()
    if name == "learned": # whose posterior is Gaussian
        assert abs(gaps.full - exact.numpy()).max() < 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = log_likelihood(model, x, 0.3)
    assert abs((found.log_px - exact).mean()) < max(0.3, 3 * found.error)

@pytest.mark.parametrize("name", ["learned", "mixture"])
def test_the_two_sided_bound_closes(name):
    assert_zero(sandwich(model_of(name), 6, SHAPE, ANNEALING["curvature"]).gap)

def test_the_exact_posterior_under_a_learned_prior():
    "Constant weights, and a bound that is log p(x)."
    precision = torch.diag(WIDTHS[0]**-2) + LG.A.T @ LG.A / LG.s**2
    cov = torch.linalg.inv(precision)
    def exact(x):
        mu = ((x.flatten(1) - LG.a) @ LG.A / LG.s**2 + MEANS[0] / WIDTHS[0].square()) @ cov
        return FullGaussian(mu, torch.linalg.cholesky(cov).expand(len(x), -1, -1))
    model, x = model_of("learned", Call(exact)), images("learned")
    r = evaluate(model, x, 7)
    torch.testing.assert_close(r.elbo, truth("learned", x), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(r.iwae, r.elbo)
    with torch.no_grad():
        q = gauss_newton(model, x, model.posterior(x), rounds=3)
    torch.testing.assert_close(q.mu, exact(x).mu, rtol=1e-3, atol=1e-3)

@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("kind", ["diagonal", "mixture"])
def test_both_kls_agree(name, kind):
    "Closed or estimated, by samples that a mixture weighs."
    model, x = model_of(name), images(name, 3)
    q = rough(x)
    if kind == "mixture":
        parts = torch.stack([q.mu, q.mu + 1]), torch.stack([q.log_sigma] * 2)
        q = GaussianMixture(*parts, torch.full((2, 3), math.log(0.5), dtype=F64))
    with torch.no_grad():
        kl = model.sample_and_kl(q, 20_000, seeded())[2]
        z, log_q = q.rsample_and_log_prob(20_000, seeded(1))
        error = (log_q - model.prior.log_prob(z)).std(0) / 20_000**0.5
        assert ((log_q - model.prior.log_prob(z)).mean(0) - kl).abs().max() < 8 * error.max() + 1e-6
        bound = model.elbo(x, 2000, seeded())
    assert bound.isfinite().all()

@pytest.mark.parametrize("name", PRIORS)
def test_derivatives_and_draws(name):
    prior, law = as_prior(PRIORS[name][0](), Z), PRIORS[name][1]()
    z = torch.randn(4, Z, generator=seeded(), dtype=F64)
    torch.testing.assert_close(prior.log_prob(z), law.log_prob(z))
    torch.testing.assert_close(prior.log_prob(z.expand(3, 4, Z)), law.log_prob(z).expand(3, 4))
    h = 1e-5
    numeric = torch.stack([(law.log_prob(z + h * e) - law.log_prob(z - h * e)) / (2 * h)
                           for e in torch.eye(Z, dtype=F64)], -1)
    torch.testing.assert_close(prior.gradient(z), numeric.detach(), rtol=1e-5, atol=1e-6)
    assert (torch.linalg.eigvalsh(prior.precision(z)) > 0).all()
    like = torch.zeros(0, Z, dtype=F64)
    state = torch.get_rng_state()
    a, b, other = (prior.sample(4000, like, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, other) and torch.equal(state, torch.get_rng_state())
    assert_zero(a - law.mean.detach(), 5)

@pytest.mark.parametrize("name", ["learned", "mixture"])
def test_steps_climb_the_right_bound(name):
    x = images(name, 40)
    plain = evaluate(model_of(name), x, 500).elbo.mean()
    for wrapper in (SemiAmortized, NaturalStep):
        assert evaluate(model_of(name, wrapper(Call(rough))), x, 500).elbo.mean() > plain
    assert not with_natural_step(model_of(name)).prior.standard

@pytest.mark.filterwarnings("ignore")
def test_a_learned_prior_trains_and_is_kept_by_refit():
    torch.manual_seed(0)
    shape = (1, 4, 4)
    encoder = AmortizedEncoder(mlp_trunk(shape, (8,)), 8, Z)
    model = VAE(encoder, mlp_decoder(Z, shape, (8,)), Bernoulli(), prior=GaussianPrior(Z))
    x = 255 * torch.bernoulli(torch.full((20, *shape), 0.3), generator=seeded()).to(torch.uint8)
    config = TrainConfig(epochs=2, batch_size=10, kl_warmup=0, dreams=0.3)
    train(model, x, x, "static", config, bar=False)
    assert all(p.abs().sum() > 0 for p in model.prior.parameters())
    before = copy.deepcopy(model.state_dict())
    refit(model, x, x, "static", config, bar=False)
    changed = {k.split(".")[0] for k, t in model.state_dict().items() if not torch.equal(t, before[k])}
    assert changed == {"encoder"}
    assert scores(model, x)["kl"].shape == (20,)

def test_dreams_come_from_the_prior():
    model = model_of("correlated")
    torch.manual_seed(0)
    drawn = sample_images(model, 4000, images("correlated", 2), "prior").flatten(1)
    assert_zero((drawn - (MEANS[2] @ LG.A.T + LG.a)).sum(1))

def test_under_adapt():
    net = nn.ModuleList([LG.decoder])
    encode, decode = (lambda x: Normal(LG.mean(x), 0.5)), (lambda z: net[0](z))
    model = adapt(encode, decode, LG.likelihood, Z, SHAPE, module=net, prior=mixture())
    x = images("mixture")
    assert (evaluate(model, x, 20_000).iwae - truth("mixture", x)).abs().max() < 0.15

def test_the_standard_normal_passed_or_not_is_the_same():
    x = LG.images(5).clamp(0, 1)
    plain = VAE(Call(rough), LG.decoder, LG.likelihood)
    law = Independent(Normal(torch.zeros(Z, dtype=F64), torch.ones(Z, dtype=F64)), 1)
    passed = VAE(Call(rough), LG.decoder, LG.likelihood, prior=law)
    torch.testing.assert_close(evaluate(plain, x, 50).iwae, evaluate(passed, x, 50).iwae)
    assert isinstance(plain.prior, StandardNormal) and len(list(plain.children())) == 3

class Wrong(nn.Module):
    def __init__(self, log_prob=lambda z: z.sum(-1), sample=lambda n: torch.zeros(n, Z)):
        super().__init__()
        self.log_prob, self.sample = log_prob, sample

REFUSED = {
    "text": ("normal", "the prior is an object of type str"),
    "rows": (Wrong(lambda z: z), "log_prob of the prior returns .3, 2. for latents"),
    "one number": (Wrong(lambda z: z.sum()), "log_prob of the prior returns"),
    "mixes rows": (Wrong(lambda z: z.sum(-1) + len(z)), "rows must not mix"),
    "NaN": (Wrong(lambda z: z.sum(-1) * math.nan), "not finite at its own samples"),
    "other width": (Normal(torch.zeros(3), 1.), r"sample of the prior returns \[3, 3\]: it must be \[3, 2\]"),
    "no sample": (nn.Identity(), "the prior fails"),
}

@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_prior_is_one_line(name):
    prior, match = REFUSED[name]
    with pytest.raises(InputError, match=match) as error:
        VAE(Call(rough), LG.decoder, LG.likelihood, prior=prior)
    assert "\n" not in str(error.value)

def test_vlae_says_that_it_needs_the_standard_normal():
    with pytest.raises(InputError, match=r"a prior N\(0, I\)"):
        VAE(LaplaceEncoder(nn.Flatten(), 6, Z), nn.Linear(Z, 6), Gaussian(6), prior=GaussianPrior(Z))

def test_a_prior_without_derivative_is_one_line():
    prior = Wrong(lambda z: torch.zeros(len(z)), lambda n: torch.zeros(n, Z))
    model = VAE(Call(rough), LG.decoder, LG.likelihood, prior=prior)
    x = LG.images(2).clamp(0, 1)
    assert evaluate(model, x, 5).iwae.isfinite().all()
    with pytest.raises(InputError, match="log p.z. does not depend differentiably on z"):
        ais(model, x, AISConfig(temperatures=2, chains=2))
