"""Gradient steps on each image's bound: up, one image at a time, in the right units, and differentiable. All
in float64."""
import copy

import pytest
import torch
from torch import nn

from gpvae.encoders.semi_amortized import (_SEED, SemiAmortized, _Window, ascend, clipped, gradients,
                                           semi_amortized)
from gpvae.checks import InputError
from gpvae.encoders.gp import FullCovariance, GPEncoder
from gpvae.likelihoods import Bernoulli
from gpvae.networks import mlp_trunk
from gpvae.posteriors import DiagonalGaussian, antithetic
from gpvae.study.config import RunSpec
from models import build_model
from gpvae.train_step import TrainConfig, train_step
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.vae import VAE, LogJoint
from toys import (F64, Z, Call, LinearGaussian, assert_zero, bernoulli_model, binary_images,
                  gp_encoder, perturb, seeded)

def close(a, b, tol=1e-10): torch.testing.assert_close(a, b, rtol=tol, atol=tol)

def smooth_model(encoder=AmortizedEncoder, D=16, H=5):
    "Tanh units, so that every derivative exists."
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(D, H), nn.Tanh())
    decoder = nn.Sequential(nn.Linear(Z, H), nn.Tanh(), nn.Linear(H, D))
    return perturb(VAE(encoder(trunk, H, Z), decoder, Bernoulli()).double(), 0.4)

def case(B=6):
    "A model, its images, a start beside the posterior and noise."
    model, x = smooth_model(), binary_images(B)
    q = DiagonalGaussian(0.7 * torch.randn(B, Z, generator=seeded(1), dtype=F64),
                         0.4 * torch.randn(B, Z, generator=seeded(2), dtype=F64) - 0.5)
    return model, x, q, [antithetic(4, B, q.mu, seeded(3 + i)) for i in range(8)]

# --- the gradient ---------------------------------------------------------------------------------

@pytest.mark.parametrize("path", [False, True])
def test_inner_gradient_is_that_of_finite_differences(path):
    """Of each image's own bound, in mean and log standard deviation; of the held density's function for the
    path gradient."""
    model, x, q, (eps, *_) = case()
    log_joint, h = LogJoint(model, x), 1e-6
    def bounds(d_mu, d_log_sigma):
        return log_joint.bound(DiagonalGaussian(q.mu + d_mu, q.log_sigma + d_log_sigma), eps,
                               q if path else None).detach()
    d_mu, d_log_sigma = gradients(log_joint, q, eps, path)
    for j in range(Z):
        e = h * torch.eye(Z, dtype=F64)[j]
        close(d_mu[:, j], (bounds(e, 0) - bounds(-e, 0)) / (2 * h), 1e-6)
        close(d_log_sigma[:, j], (bounds(0, e) - bounds(0, -e)) / (2 * h), 1e-6)

def test_inner_bound_is_the_elbo():
    model, x, q, _ = case()
    eps = torch.randn(7, 6, Z, generator=seeded(), dtype=F64)
    close(LogJoint(model, x).bound(q, eps), model.terms_of(q, x, 7, seeded()).elbo())
    z = q.at(eps)
    close(LogJoint(model, x).bound(q, eps, q), (model.log_joint(x, z) - q.log_prob(z)).mean(0))

@pytest.mark.parametrize("path", [False, True])
def test_expected_gradient_is_exact(path):
    "On a linear-Gaussian model the bound of a diagonal Gaussian is known, and so is its gradient."
    lg = LinearGaussian()
    x = lg.images(1).expand(40_000, -1, -1, -1)
    q = lg.rough(x[:1])
    mu, log_sigma = q.mu.clone().requires_grad_(), q.log_sigma.clone().requires_grad_()
    exact = torch.autograd.grad(-lg.gap(x[:1], DiagonalGaussian(mu, log_sigma))[0], (mu, log_sigma))
    many = DiagonalGaussian(q.mu.expand(len(x), -1), q.log_sigma.expand(len(x), -1))
    found = gradients(LogJoint(lg.model(lg.rough), x), many, antithetic(1, len(x), q.mu, seeded()), path)
    for f, e in zip(found, exact):
        for j in range(Z):
            assert_zero(f[:, j] - e[0, j])

def test_path_gradient_is_zero_at_the_posterior():
    lg = LinearGaussian(orthogonal=True)
    x = lg.images(5)
    q, log_joint = lg.rough(x, shift=0., width=1.).detach(), LogJoint(lg.model(lg.rough), x)
    for g in gradients(log_joint, q, antithetic(3, 5, q.mu, seeded())):
        close(g, torch.zeros_like(g), 1e-9)
    assert gradients(log_joint, q, antithetic(3, 5, q.mu, seeded()), path=False)[1].abs().max() > 0.1

def test_antithetic_noise():
    eps = antithetic(5, 3, torch.zeros(1, 4, dtype=F64), seeded())
    assert eps.shape == (5, 3, 4) and eps.dtype == F64
    close(eps[3:], -eps[:2])
    assert_zero(antithetic(2, 5000, eps[0], seeded())[1])
    assert_zero(antithetic(2, 5000, eps[0], seeded())[1].square() - 1)

# --- the steps ------------------------------------------------------------------------------------

@pytest.mark.parametrize("how",
                         [dict(step_size=0.05), dict(step_size=0.02, natural=False),
                          dict(step_size=0.05, path=False), dict(step_size=0.03, momentum=0.5)], ids=str)
def test_the_bound_rises_with_every_step(how):
    "Of the mean over a batch, at small steps: a step that descends, or forgets the KL, is seen at once."
    model, x, q, _ = case(40)
    log_joint = LogJoint(model, x)
    noise = [antithetic(20, 1, q.mu, seeded(i)) for i in range(8)]
    fresh = antithetic(500, 1, q.mu, seeded(99))
    bounds = [log_joint.bound(ascend(log_joint, q, noise[:k], **how), fresh).mean().item()
              for k in (0, 1, 2, 4, 8)]
    assert all(b > a + 0.005 for a, b in zip(bounds, bounds[1:])), bounds

def test_steps_of_the_encoder_raise_the_bound():
    "The same through the methods: one start, more steps, a higher bound."
    x, fresh = binary_images(60), antithetic(400, 1, torch.zeros(1, Z, dtype=F64), seeded(5))
    start, bounds = perturb(AmortizedEncoder(mlp_trunk((1, 4, 4), (8,)), 8, Z).double(), 0.5), []
    model = bernoulli_model(start)
    for k in (1, 2, 4, 8):
        refined = VAE(SemiAmortized(start, k, step_size=0.1), model.decoder, model.likelihood).eval()
        bounds.append(LogJoint(refined, x).bound(refined.posterior(x), fresh).mean().item())
    amortized = LogJoint(model, x).bound(model.eval().posterior(x), fresh).mean().item()
    assert all(b > a for a, b in zip([amortized, *bounds], bounds)), (amortized, bounds)

@pytest.mark.parametrize("natural", [False, True])
def test_a_step_is_the_gradient_in_its_units(natural):
    "One step, and the velocity of the second, written out."
    model, x, q, noise = case()
    log_joint = LogJoint(model, x)
    def delta(q, eps):
        g, h = gradients(log_joint, q, eps)
        return torch.cat([torch.exp(2 * q.log_sigma) * g, h / 2] if natural else [g, h], 1)
    flat = lambda q: torch.cat([q.mu, q.log_sigma], 1)
    one, two = (ascend(log_joint, q, noise[:n], step_size=0.1, momentum=0.7, clip=1e9, natural=natural)
                for n in (1, 2))
    close(flat(one), flat(q) + 0.1 * delta(q, noise[0]))
    close(flat(two), flat(one) + 0.1 * (0.7 * delta(q, noise[0]) + delta(one, noise[1])))

@pytest.mark.parametrize("natural", [False, True])
def test_a_step_does_not_depend_on_the_batch(natural):
    "Neither on its size nor on what is in it: alone, among others, and beside an image with a huge gradient."
    model, x, q, noise = case()
    noise = [e[:, :1] for e in noise]
    part = lambda q, i: DiagonalGaussian(q.mu[i], q.log_sigma[i])
    go = lambda x, q: ascend(LogJoint(model, x), q, noise, clip=0.5, natural=natural)
    whole = go(x, q)
    for i in range(6):
        alone = go(x[i:i + 1], part(q, slice(i, i + 1)))
        close(alone.mu[0], whole.mu[i])
        close(alone.log_sigma[0], whole.log_sigma[i])
    far = go(x,
             DiagonalGaussian(q.mu.index_put((torch.tensor(5),), torch.full((Z,), 50., dtype=F64)),
                              q.log_sigma))
    close(far.mu[:5], whole.mu[:5])
    close(far.log_sigma[:5], whole.log_sigma[:5])

def test_the_clip_holds_the_norm_of_each_image():
    "The norm, not its square: 3-4-5 triangles below, at and above the limit."
    w = (torch.tensor([[3., 0.], [0.3, 0.], [30., 0.]], dtype=F64),
         torch.tensor([[0., 4.], [0., 0.4], [0., 40.]], dtype=F64))
    a, b = clipped(*w, 2.)
    close(torch.cat([a, b], 1).norm(dim=1), torch.tensor([2., 0.5, 2.], dtype=F64))
    close(a[1], w[0][1])
    close(b[1], w[1][1])
    close(a[0], a[2])
    close(b[0], 0.4 * w[1][0])
    for limit in (4.999, 5.001):
        close(clipped(*w, limit)[0][0, 0] * 5 / 3, torch.tensor(min(limit, 5.), dtype=F64))

def test_a_clipped_step_is_that_long():
    model, x, q, noise = case()
    end = ascend(LogJoint(model, x), q, noise[:1], step_size=1., clip=1e-3)
    moves = [(end.mu - q.mu) / q.log_sigma.exp(), (end.log_sigma - q.log_sigma) * 2**0.5]
    length = torch.cat(moves, 1).norm(dim=1)
    close(length, torch.full_like(length, 1e-3), 1e-6)

# --- derivatives through the steps ----------------------------------------------------------------

@pytest.mark.parametrize("how",
                         [{}, {"natural": False, "path": False, "clip": 1e9}, {"momentum": 0.5, "clip": 0.3}],
                         ids=str)
def test_second_order_gradients(how):
    "In the start and in the decoder's weights, against finite differences of the final bound."
    _, x, q, noise = case(2)
    model, x = smooth_model(D=4, H=3), x[:, :, :1]
    names, values = zip(*model.decoder.named_parameters())
    fresh = antithetic(3, 2, q.mu, seeded(9))
    def final(mu, log_sigma, *weights):
        decoder = lambda z: torch.func.functional_call(model.decoder, dict(zip(names, weights)), z)
        log_joint = LogJoint(VAE(Call(None), Call(decoder), model.likelihood), x)
        return log_joint.bound(ascend(log_joint, DiagonalGaussian(mu, log_sigma), noise[:2],
                                      second_order=True, **how), fresh)
    inputs = [t.detach().clone().requires_grad_() for t in (q.mu, q.log_sigma, *values)]
    assert torch.autograd.gradcheck(final, inputs, rtol=1e-4)

def model_of(steps=2, **options):
    model = smooth_model(lambda *sizes: semi_amortized(*sizes, steps=steps, **options))
    return model.train(), binary_images(8)

def step_gradient(model, x, beta=1.):
    "The gradient of the training objective under seed 0, by name."
    torch.manual_seed(0)
    model.zero_grad()
    next(model.objectives(x, beta))[0].mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

def test_training_differentiates_through_the_steps():
    "Encoder and decoder get another gradient than from steps that are constants."
    model, x = model_of()
    whole = step_gradient(model, x)
    torch.manual_seed(0)
    log_joint = LogJoint(model, x)
    q = model.encoder.start(x)
    end = model.encoder.refined(log_joint, q.detach()).detach()
    model.zero_grad()
    model.terms_of(DiagonalGaussian(end.mu + q.mu - q.mu.detach(),
                                    end.log_sigma + q.log_sigma - q.log_sigma.detach()),
                   x).elbo().mean().backward()
    for name, p in model.named_parameters():
        assert (whole[name] - p.grad).abs().max() > 1e-3 * p.grad.abs().max(), name

def test_first_order_trains_the_decoder_at_the_end_and_the_encoder_at_the_start():
    model, x = model_of(second_order=False)
    found, beta = step_gradient(model, x, 0.6), 0.6
    torch.manual_seed(0)
    q = model.encoder.start(x)
    end = model.encoder.refined(LogJoint(model, x), q.detach())
    bounds = model.terms_of(end, x).elbo(beta).mean(), model.terms_of(q, x).elbo(beta).mean()
    for bound, part in zip(bounds, ("decoder", "encoder")):
        names, params = zip(*((n, p) for n, p in model.named_parameters() if n.startswith(part)))
        for name, g in zip(names, torch.autograd.grad(bound, params, retain_graph=True)):
            close(found[name], g)
    torch.manual_seed(0)
    objective, terms = next(model.objectives(x, beta))
    close(objective, terms.elbo(beta))

def test_training_of_first_order_ascends():
    model, x = model_of(second_order=False)
    optimizer, config = torch.optim.Adam(model.parameters(), 1e-2), TrainConfig(n_samples=4)
    torch.manual_seed(0)
    elbos = [(t[0] - t[1]).item()
             for t in (train_step(model, optimizer, x, 1., 100, config) for _ in range(25))]
    assert sum(elbos[-8:]) > sum(elbos[:8]) + 3

def test_the_inner_steps_go_up_the_full_bound():
    "A warm-up weighs the KL of the training bound only."
    model, x = model_of()
    found = []
    for beta in (0.01, 1.):
        torch.manual_seed(0)
        _, terms = next(model.objectives(x, beta))
        found.append(terms)
    close(found[0].kl, found[1].kl)
    close(found[0].log_px_z, found[1].log_px_z)

# --- noise ----------------------------------------------------------------------------------------

def test_evaluation_has_its_own_noise():
    """The refined posterior is one and the same, whatever the seeds; no seed of an evaluation is the steps'
    own."""
    model, x = model_of()
    model.eval()
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(model.posterior(x))
    close(found[0].mu, found[1].mu, 0)
    close(found[0].log_sigma, found[1].log_sigma, 0)
    assert _SEED not in range(1000) and _SEED != 210203151 and not found[0].mu.requires_grad

@pytest.mark.parametrize("training", [True, False])
def test_weights_are_unbiased(training):
    """The samples that score a refined posterior have not been seen by its steps: importance weights average
    to p(x)."""
    lg = LinearGaussian()
    x = lg.images(1).expand(20_000, -1, -1, -1)
    model = lg.model(lg.rough)
    model.encoder = SemiAmortized(model.encoder, 3, inner_samples=1).train(training)
    torch.manual_seed(0)
    q = model.posterior(x)
    z, log_qz_x = q.rsample_and_log_prob(1)
    assert_zero((model.log_joint(x, z) - log_qz_x - lg.log_px(x)).detach().exp() - 1)
    assert_zero((model.terms_of(q, x, 1).elbo() - lg.log_px(x) + lg.gap(x, q)).detach())

def test_training_noise_is_of_each_image():
    model, x = model_of()
    torch.manual_seed(0)
    q = model.posterior(x[:1].expand(5, -1, -1, -1))
    assert (q.mu[0] - q.mu[1:]).abs().min() > 1e-6

# --- composition ----------------------------------------------------------------------------------

def test_parts_of_the_start_show_through():
    plain = SemiAmortized(AmortizedEncoder(mlp_trunk((1, 4, 4), (4,)), 4, Z)).double()
    random = SemiAmortized(gp_encoder())
    x = binary_images(3)
    assert not plain.is_stochastic and plain.uncertainty(x) is None and plain.weight_kl() == 0
    assert not random.modes
    assert random.is_stochastic
    assert all(torch.equal(a, b) for a, b in zip(random.uncertainty(x), random.start.uncertainty(x)))
    assert torch.equal(random.phi(x), random.start.trunk(x))
    assert torch.equal(plain.phi(x), plain.start.trunk(x))
    random.noise_scale = 0.25
    assert random.start.noise_scale == 0.25 and "noise_scale" not in vars(random)
    close(bernoulli_model(random).weight_kl_per_image(50), random.start.weight_kl() / 50)

def test_steps_start_from_a_draw_in_training_and_from_the_marginal_at_test_time():
    encoder, x = gp_encoder(), binary_images(5)
    model = bernoulli_model(SemiAmortized(encoder, 1, step_size=1e-12))
    torch.manual_seed(0)
    q = model.train().posterior(x)
    torch.manual_seed(0)
    close(q.mu, encoder.train()(x).mu)
    close(model.eval().posterior(x).mu, encoder.eval()(x).mu)

# --- only the hardest -----------------------------------------------------------------------------

def partly(refine, rank="f_relative"):
    "An encoder that has seen 900 training images, and others to refine."
    encoder = SemiAmortized(gp_encoder(), 2, refine=refine, rank=rank)
    model = bernoulli_model(encoder).train()
    with torch.no_grad():
        for seed in (11, 12, 13):
            model.posterior(binary_images(300, seed=seed))
    return model.eval(), binary_images(400, seed=14)

@pytest.mark.parametrize("rank", ["f", "g", "f_relative"])
def test_only_images_above_the_threshold_are_refined(rank):
    model, x = partly(0.3, rank)
    q, start = model.posterior(x), model.encoder.start(x)
    moved = (q.mu != start.mu).any(1)
    doubt = getattr(model.encoder.uncertainty(x), rank)
    seen = torch.cat([getattr(model.encoder.uncertainty(binary_images(300, seed=s)), rank)
                      for s in (11, 12, 13)])
    assert torch.equal(moved, doubt >= seen.quantile(0.7)) and 0.2 < moved.double().mean() < 0.4
    model.encoder.refine = 1.
    whole = model.posterior(x)
    close(q.mu[moved], whole.mu[moved])
    close(q.log_sigma[moved], whole.log_sigma[moved])
    close(q.mu[~moved], start.mu[~moved])

def test_watching_leaves_the_start_alone():
    """The uncertainty of training images is that of test time, and asking for it moves neither running
    moments nor the mode."""
    x, encoders = binary_images(50), [gp_encoder(features="standardised") for _ in "ab"]
    wrapped = bernoulli_model(SemiAmortized(encoders[0]).double()).train()
    torch.manual_seed(0)
    encoders[1].train()(x)
    torch.manual_seed(0)
    wrapped.posterior(x)
    for a, b in zip(encoders[0].state_dict().values(), encoders[1].state_dict().values()):
        assert torch.equal(a, b)
    assert all(m.training for m in wrapped.modules())
    close(wrapped.encoder.window.last[-50:], encoders[0].eval().uncertainty(x).f_relative.detach())

def test_a_window_keeps_the_last():
    w, values = _Window(5).double(), torch.arange(12., dtype=F64)
    assert w.quantile(0.3) == -torch.inf
    w.add(values[:3])
    close(w.quantile(0.5), values[1])
    w.add(values[3:7])
    close(w.last, values[2:7])
    w.add(values)
    close(w.last, values[7:])
    close(w.quantile(0.25), values[8])

def test_an_untrained_encoder_refines_all():
    model, x = bernoulli_model(SemiAmortized(gp_encoder(), refine=0.1)).eval(), binary_images(9)
    assert (model.posterior(x).mu != model.encoder.start(x).mu).any(1).all()

# --- input ----------------------------------------------------------------------------------------

def test_a_mixture_is_no_start():
    with pytest.raises(InputError, match="mixture"):
        build_model(RunSpec(method="gpvae+sa-2", z_dim=2, likelihood="bernoulli",
                            settings=(("hidden", (4,)), ("mode", "mixture"))), (1, 4, 4))

def test_inference_mode_is_refused():
    model, x = model_of()
    with torch.inference_mode(), pytest.raises(InputError, match="no_grad"):
        model.eval().posterior(x)

def test_options_reach_start_and_steps():
    encoder = build_model(RunSpec(method="gpvae+sa-4", z_dim=2, likelihood="bernoulli",
                                  settings=(("hidden", (4,)), ("covariance", "full"), ("step_size", 0.7))),
                          (1, 4, 4)).encoder
    assert encoder.steps == 4 and encoder.how["step_size"] == 0.7 and isinstance(encoder.start, GPEncoder)
    assert isinstance(encoder.start.W.cov, FullCovariance)

def test_copies_are_independent():
    model, x = model_of(second_order=False)
    copied = copy.deepcopy(model)
    x = binary_images(20)
    with torch.no_grad():
        copied.encoder.start.trunk[1].weight.zero_()
    torch.manual_seed(0)
    (value, _), = model.objectives(x)
    torch.manual_seed(0)
    (other, _), = copied.objectives(x)
    assert (value - other).abs().max() > 1e-3 # each goes by its own weights
