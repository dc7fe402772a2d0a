"""The best Gaussian of each image: known optima are reached, images climb alone, and nothing is below the
amortized bound. All in float64."""
import pytest
import torch

from gpvae.encoders.svi import SVI
from gpvae.inference.best_gaussian import (_ascend, _climb, _gradient, _whitened, Climb, Search, ascended,
                                           best_gaussian, gaussian, parameters, _prior_of, start_of)
from gpvae.checks import InputError
from gpvae.evaluation.iwae import evaluate
from gpvae.networks import mlp_trunk
from gpvae.posteriors import DiagonalGaussian, FullGaussian, GaussianMixture, antithetic
from gpvae.study.config import RunSpec
from models import build_model
from gpvae.training import TrainConfig, train, validation_bound
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.vae import VAE, LogJoint
from toys import (F64, Z, LinearGaussian, assert_positive, bernoulli_model, binary_images, gp_encoder,
                  perturb, seeded)

QUICK = Climb(inner_samples=8, every=12, cuts=3)

def close(a, b, tol=1e-10): torch.testing.assert_close(a, b, rtol=tol, atol=tol)

def toy(seed=0):
    "An amortized model of binary images whose posteriors are far from what it proposes."
    torch.manual_seed(seed)
    model = bernoulli_model(perturb(AmortizedEncoder(mlp_trunk((1, 4, 4), (8,)), 8, Z).double(), 0.6))
    return model.eval(), binary_images(12)

# --- known optima ---------------------------------------------------------------------------------

STARTS = {"beside": lambda lg, x: lg.rough(x, shift=0.5, width=3.), "prior": lambda lg, x: _prior_of(x, Z)}

@pytest.mark.parametrize("start", STARTS)
def test_diagonal_optimum_of_the_linear_model(start):
    "Variances 1/diag of the posterior's precision, the exact mean, and the bound that lacks just that KL."
    lg = LinearGaussian()
    x = lg.images(6)
    best = best_gaussian(lg.model(lg.rough), x, STARTS[start](lg, x), QUICK, generator=seeded())
    exact = DiagonalGaussian(lg.mean(x), (-0.5 * torch.linalg.inv(lg.cov).diagonal().log()).expand(6, Z))
    assert best.converged.all()
    close((best.q.mu - exact.mu) / exact.log_sigma.exp(), torch.zeros(6, Z, dtype=F64), 0.02)
    close(best.q.log_sigma, exact.log_sigma, 0.03)
    assert (lg.gap(x, best.q) - lg.gap(x, exact) < 2e-3).all()
    assert (best.bound - lg.log_px(x) + lg.gap(x, best.q)).abs().max() < 5 * best.error.max()
    assert lg.gap(x, exact).min() > 0.09

@pytest.mark.parametrize("start", STARTS)
def test_full_optimum_of_the_linear_model(start):
    "The exact posterior: its covariance, and a bound that is log p(x) for every sample."
    lg = LinearGaussian()
    x = lg.images(6)
    best = best_gaussian(lg.model(lg.rough), x, STARTS[start](lg, x), Climb("full", tolerance=1e-4, cuts=6),
                         generator=seeded())
    assert best.converged.all() and best.error.max() < 1e-4
    close(best.bound, lg.log_px(x), 1e-5)
    close(best.q.mu, lg.mean(x), 1e-3)
    close(best.q.L @ best.q.L.mT, lg.cov.expand(6, Z, Z), 1e-3)

@pytest.mark.parametrize("family", ["diagonal", "full"])
def test_a_step_ascends(family):
    lg = LinearGaussian()
    x = lg.images(4)
    p, log_joint = parameters(lg.rough(x), family), LogJoint(lg.model(lg.rough), x)
    lr = torch.full((4,), 1e-3, dtype=F64)
    eps = antithetic(500, 1, p[0], seeded())
    after = _climb(log_joint, p, lr, [eps])
    # the first step of Adam
    for a, b, g in zip(after, p, _gradient(log_joint, p, eps)):
        close(a - b, 1e-3 * g.sign() * (g.abs() > 1e-9), 1e-6)
    assert (log_joint.bound(gaussian(after), eps, gaussian(after))
            > log_joint.bound(gaussian(p), eps, gaussian(p))).all()

def test_adam_is_torchs():
    "Five steps with two step sizes, against the optimiser of torch, image by image."
    grads, lr = torch.randn(5, 2, 3, generator=seeded(), dtype=F64), torch.tensor([0.1, 0.01], dtype=F64)
    p = torch.ones(2, 3, dtype=F64)
    theirs = [torch.ones(3, dtype=F64, requires_grad=True) for _ in lr]
    optimizer = torch.optim.Adam([{"params": [t], "lr": r.item()} for t, r in zip(theirs, lr)],
                                 betas=(0.9, 0.99), maximize=True)
    m = v = torch.zeros_like(p)
    for t, g in enumerate(grads, 1):
        p, m, v = _ascend(p, g, m, v, lr, t)
        for a, b in zip(theirs, g):
            a.grad = b.clone()
        optimizer.step()
    close(p, torch.stack([t.detach() for t in theirs]), 1e-6)

def test_parameters_and_back():
    g = seeded()
    L = torch.randn(5, 3, 3, generator=g, dtype=F64).tril(-1) + torch.diag_embed(0.2 + torch.rand(
        5, 3, generator=g, dtype=F64
    ))
    full = FullGaussian(torch.randn(5, 3, generator=g, dtype=F64), L)
    diagonal = DiagonalGaussian(L[:, 0], L[:, 1])
    close(gaussian(parameters(full, "full")).L, L)
    close(gaussian(parameters(full, "full")).mu, full.mu)
    marginals = gaussian(parameters(full, "diagonal"))
    close(torch.exp(2 * marginals.log_sigma), (L @ L.mT).diagonal(dim1=1, dim2=2))
    same = gaussian(parameters(diagonal, "full"))
    z = torch.randn(4, 5, 3, generator=g, dtype=F64)
    close(same.log_prob(z), diagonal.log_prob(z))
    close(same.at(z), diagonal.at(z))

def test_start_of_what_is_no_gaussian():
    mu = torch.tensor([-1., 1.], dtype=F64)[:, None, None].expand(2, 3, Z)
    q = start_of(GaussianMixture(mu, torch.full_like(mu, -1.), torch.full((2, 3), 0.5, dtype=F64).log()),
                 4000, seeded())
    close(q.mu, torch.zeros(3, Z, dtype=F64))
    close(torch.exp(2 * q.log_sigma), torch.full((3, Z), 1 + 2.71828**-2, dtype=F64), 0.05)

# --- binary images --------------------------------------------------------------------------------

@pytest.mark.parametrize("start", ["own", "prior"])
def test_no_image_is_worse_than_amortized(start):
    model, x = toy()
    q = model.posterior(x)
    best = best_gaussian(model, x, q if start == "own" else _prior_of(x, Z), QUICK, 4000, seeded(1))
    z, log_qz_x = q.rsample_and_log_prob(4000, seeded(2))
    gain = best.bound - (model.log_joint(x, z) - log_qz_x).mean(0).detach()
    assert best.converged.all() and (gain > -0.05).all() and gain.mean() > 0.3

def test_both_starts_find_one_optimum_and_the_full_family_is_above():
    model, x = toy()
    a, b, c = (best_gaussian(model, x, s, how, 4000, seeded(1)).bound
               for s, how in ((model.posterior(x), QUICK),
                              (_prior_of(x, Z), QUICK),
                              (_prior_of(x, Z), Climb("full", inner_samples=8, every=12, cuts=3))))
    assert (a - b).abs().max() < 0.1 and (c - a).min() > -0.05 and c.mean() > a.mean()

def test_no_neighbour_of_the_best_is_better():
    "Under much noise, moved by a third of its width in either direction, in every parameter."
    model, x = toy()
    p, _ = ascended(LogJoint(model, x), parameters(_prior_of(x, Z), "diagonal"), Climb(inner_samples=16))
    eps = antithetic(4000, 1, p[0], seeded(3))
    bound = lambda p: LogJoint(model, x).bound(gaussian(p), eps).detach()
    for j in range(Z):
        for sign in (-1, 1):
            e = 0.3 * sign * torch.eye(Z, dtype=F64)[j]
            assert (bound([p[0] + e * p[1].exp(), p[1]]) < bound(p) + 0.01).all()
            assert (bound([p[0], p[1] + e]) < bound(p) + 0.01).all()

@pytest.mark.parametrize("family", ["diagonal", "full"])
def test_images_climb_alone(family):
    "Also beside one that never converges, and whichever leave the batch first."
    model, x = toy()
    how = Climb(family, steps=60, every=10)
    go = lambda x: ascended(LogJoint(model, x), parameters(model.posterior(x), family), how)
    whole, converged = go(x)
    for i in (0, 11):
        alone, done = go(x[i:i + 1])
        for a, w in zip(alone, whole):
            close(a[0], w[i], 1e-8)
        assert done[0] == converged[i]

def test_stopped_early_is_not_converged():
    model, x = toy()
    best = best_gaussian(model, x, _prior_of(x, Z), Climb(steps=30), 100, seeded())
    assert not best.converged.any() and best.bound.isfinite().all()

def test_the_best_is_kept():
    "A step size that cannot work leaves every image where it started, or better."
    model, x = toy()
    q, eps = model.posterior(x), antithetic(4000, 1, torch.zeros(1, Z, dtype=F64), seeded(3))
    p, _ = ascended(LogJoint(model, x), parameters(q, "diagonal"), Climb(step_size=30., steps=100, cuts=2))
    assert (LogJoint(model, x).bound(gaussian(p), eps) > LogJoint(model, x).bound(q, eps) - 0.02).all()

def test_a_look_is_exact_on_a_linear_model():
    "Whitened noise integrates what is quadratic: the look is the bound in closed form."
    lg = LinearGaussian()
    x = lg.images(5)
    q = lg.rough(x)
    search = Search(LogJoint(lg.model(lg.rough), x), parameters(q, "diagonal"), Climb(look_samples=8))
    close(search.bound, lg.log_px(x) - lg.gap(x, q))
    eps = _whitened(antithetic(10, 1, torch.zeros(1, 4, dtype=F64), seeded()))
    close(eps.sum(0), torch.zeros(1, 4, dtype=F64))
    close(torch.einsum("sbi,sbj->ij", eps, eps) / 10, torch.eye(4, dtype=F64))

def test_nan_stays_in_its_image():
    model, x = toy()
    q = model.posterior(x)
    bad = DiagonalGaussian(q.mu.index_put((torch.tensor(2),), torch.tensor(torch.nan, dtype=F64)),
                           q.log_sigma)
    found, sound = (best_gaussian(model, x, s, Climb(steps=100), 100, seeded()) for s in (bad, q))
    assert found.bound.isnan().nonzero().flatten().tolist() == [2] and not found.converged[2]
    rest = torch.arange(12) != 2
    close(found.q.mu[rest], sound.q.mu[rest], 1e-8)

def test_the_reported_bound_has_fresh_noise():
    model, x = toy()
    go = lambda seed: best_gaussian(model, x, model.posterior(x), Climb(steps=50), 500, seeded(seed))
    a, b = go(1), go(2)
    close(a.q.mu, b.q.mu)
    assert not torch.equal(a.bound, b.bound)
    assert ((a.bound - b.bound).abs() < 6 * (a.error + b.error)).all() and not a.q.mu.requires_grad

def test_the_model_is_left_alone():
    model, x = toy()
    best_gaussian(model, x, _prior_of(x, Z), Climb(steps=50), 10, seeded())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())

# --- the method -----------------------------------------------------------------------------------

SPEC = RunSpec(method="svi", z_dim=Z, likelihood="bernoulli", settings=(("hidden", (8,)),))

def test_it_trains_and_validates_as_the_amortized_encoder():
    "To the same bits as the vae of the same seed."
    images = (255 * binary_images(100)).byte()
    trainers = []
    for method in ("vae", "svi"):
        model = build_model(RunSpec(method=method, z_dim=Z, likelihood="bernoulli",
                                    settings=SPEC.settings + (("steps", 50),) * (method == "svi")),
                            (1, 4, 4))
        trainers.append(train(model, images, images[:20], "static", TrainConfig(epochs=2, batch_size=50),
                              bar=False))
    vae, other = trainers
    assert [h["valid_elbo"] for h in vae.history] == [h["valid_elbo"] for h in other.history]
    assert all(torch.equal(a, b) for a, b in zip(vae.model.parameters(), other.model.parameters()))
    assert validation_bound(other.model, images, "static") == validation_bound(vae.model, images, "static")
    assert_positive(evaluate(other.model, images[:40], 50, "static").elbo
                    - evaluate(vae.model, images[:40], 50, "static").elbo)

@pytest.mark.parametrize("family, kind", [("diagonal", DiagonalGaussian), ("full", FullGaussian)])
def test_its_posterior_is_the_best_of_the_family(family, kind):
    model, x = toy()
    method = VAE(SVI(model.encoder, family, steps=50), model.decoder, model.likelihood)
    assert isinstance(method.train().posterior(x), DiagonalGaussian)
    assert torch.equal(method.posterior(x).mu, model.posterior(x).mu)
    q = method.eval().posterior(x)
    best = best_gaussian(model, x, model.posterior(x), Climb(family, steps=50), 10)
    assert isinstance(q, kind) and not q.mu.requires_grad
    close(q.mu, best.q.mu)

def test_parts_of_the_start_show_through():
    plain, random = SVI(AmortizedEncoder(mlp_trunk((1, 4, 4), (4,)), 4, Z)).double(), SVI(gp_encoder())
    x = binary_images(3)
    assert not plain.is_stochastic and plain.uncertainty(x) is None and random.is_stochastic
    assert random.validation is random.start
    assert all(torch.equal(a, b) for a, b in zip(random.uncertainty(x), random.start.uncertainty(x)))
    assert torch.equal(random.phi(x), random.start.trunk(x))
    close(random.weight_kl(), random.start.weight_kl())

# --- input ----------------------------------------------------------------------------------------

def test_inference_mode_is_refused():
    model, x = toy()
    with torch.inference_mode(), pytest.raises(InputError, match="no_grad"):
        ascended(LogJoint(model, x), parameters(_prior_of(x, Z), "diagonal"), QUICK)
