"What every encoder of the table of methods promises. A new method is covered by being in the table."
import copy
import math
from dataclasses import replace

import pytest
import torch

from gpvae.checks import InputError
from gpvae.evaluation.iwae import estimate_batch
from gpvae.posteriors import Posterior
from gpvae.study.config import RunSpec
from gpvae.study.methods import METHODS, encoder_options
from gpvae.study.settings import SECTION_OF
from models import build_model
from gpvae.train_step import TrainConfig, train_step
from gpvae.vae import Wrapper, evaluating
from toys import F64, assert_positive, binary_images, perturb, seeded

SHAPE = (1, 4, 4)
VARIANTS = [{"covariance": "full"},
            {"features": "layernorm"},
            {"features": "raw"},
            {"mode": "mean"},
            {"mode": "mixture"},
            {"learn_prior_scale": True, "temperature": 5.},
            {"own_features": True},
            {"correlated": True}]
SMALL = {"flow_width": 8} # as small as the trunk
SHORT = {"svi": {"steps": 50}} # what is promised holds on the way too
CASES = ([(method, SHORT.get(method, {})) for method in METHODS]
         + [("gpvae", options) for options in VARIANTS]
         + [("rme-3", {"greed": 2.}), ("full", {"rank": 1}), ("gpvae+sa-2", {"refine": 0.5}),
            ("svi", {"family": "full"} | SHORT["svi"])])

def trunk_of(model):
    return model.encoder.start.trunk if isinstance(model.encoder, Wrapper) else model.encoder.trunk

def name_of(case): return "-".join([case[0], *(f"{k}:{v}" for k, v in case[1].items())])

@pytest.fixture(params=CASES, ids=name_of)
def case(request): return request.param

def build(case, dtype=F64, seed=0, scale=0.3):
    "A small model of a method, as the command makes it, with every parameter moved from its start."
    method, options = case
    options = {k: v for k, v in SMALL.items() if k in encoder_options(method)} | options
    spec = RunSpec(method=method, z_dim=2, seed=seed, likelihood="bernoulli",
                   settings=(("hidden", (8, 8)), ("network", "mlp"), *options.items()))
    model = perturb(build_model(spec, SHAPE).to(dtype), scale, seed)
    torch.manual_seed(0)
    # lets running moments, where there are any, start
    model.train().posterior(binary_images(500, seed=9, dtype=dtype))
    return model.eval()

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("B", [1, 7])
@pytest.mark.parametrize("training", [True, False])
def test_shapes_names_and_finite_numbers(case, dtype, B, training):
    model, x = build(case, dtype).train(training), binary_images(B, dtype=dtype)
    q = model.posterior(x)
    assert isinstance(q, Posterior)
    z, log_qz_x = q.rsample_and_log_prob(3, seeded())
    kl = q.kl()
    assert z.shape == (3, B, 2) and log_qz_x.shape == (3, B) and q.log_prob(z).shape == (3, B)
    assert q.mean.shape == (B, 2)
    assert kl is None or kl.shape == (B,)
    terms = model.terms(x, 2)
    assert terms.log_px_z.shape == terms.kl.shape == (B,)
    for value in (z, log_qz_x, q.mean, *terms):
        assert value.dtype == dtype and value.isfinite().all()
    assert model.weight_kl_per_image(100).isfinite() and model.weight_kl_per_image(100).ndim == 0

def test_optional_parts_have_answers(case):
    encoder, x = build(case).encoder, binary_images(3)
    doubt = encoder.uncertainty(x)
    assert (doubt is not None) >= encoder.is_stochastic
    assert (not encoder.is_stochastic or all((part > 0).all() for part in doubt))
    assert (encoder.weight_kl() > 0) == encoder.is_stochastic and encoder.phi(x).shape[0] == 3
    assert not encoder.modes or encoder.mode in encoder.modes
    encoder.noise_scale = 0.5
    assert encoder.noise_scale == 0.5
    assert (not isinstance(encoder, Wrapper) or encoder.start.noise_scale == 0.5)

def test_judging_leaves_no_trace(case):
    model = build(case).train()
    model.decoder.eval()
    before = [part.training for part in model.modules()]
    with evaluating(model):
        assert not any(part.training for part in model.modules())
        model.posterior(binary_images(3))
    assert [part.training for part in model.modules()] == before

def test_log_density_of_own_samples(case):
    q = build(case).posterior(binary_images(7))
    z, log_qz_x = q.rsample_and_log_prob(20, seeded())
    torch.testing.assert_close(q.log_prob(z), log_qz_x, rtol=1e-9, atol=1e-9)

def test_density_integrates_to_one(case):
    n, reach = 300, 20. # components of a mixture may be three times as wide as the prior
    axis = torch.linspace(-reach, reach, n, dtype=F64)
    z = torch.cartesian_prod(axis, axis)[:, None].expand(-1, 2, -1)
    density = build(case).posterior(binary_images(2)).log_prob(z).exp().detach()
    mass = density.sum(0) * (2 * reach / (n - 1)) ** 2
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=1e-5, atol=1e-5)

def test_mean_is_the_mean_of_the_samples(case):
    q = build(case).posterior(binary_images(3))
    # without a closed form the mean is that of so many pairs of samples, and has their error
    if hasattr(q, "mean_samples"):
        q = replace(q, mean_samples=20_000)
    z = q.rsample_and_log_prob(20_000, seeded())[0].detach()
    error, sd = (z.mean(0) - q.mean).abs(), z.std(0)
    assert (error < 5 * sd * (1 / 20_000 + 1 / getattr(q, "mean_samples", math.inf))**0.5).all()

def test_closed_form_kl_is_that_of_the_samples(case):
    q = build(case).posterior(binary_images(3))
    if q.kl() is None:
        pytest.skip("no closed form")
    z, log_qz_x = q.rsample_and_log_prob(20_000, seeded())
    difference = log_qz_x + 0.5 * z.square().sum(-1) + torch.log(torch.tensor(2 * torch.pi,
                                                                              dtype=F64)) - q.kl()
    assert (difference.mean(0).abs() < 5 * difference.std(0) / 20_000**0.5).all()

def test_gradient_reaches_every_parameter(case):
    model = build(case).train()
    seen = dict.fromkeys((name for name, p in model.named_parameters() if p.requires_grad), 0.)
    for step in range(3):
        model.zero_grad()
        loss = -model.elbo(binary_images(32, seed=step)).mean() + model.weight_kl_per_image(100)
        loss.backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                seen[name] = max(seen[name], p.grad.abs().max().item())
    assert len(seen) > 6 and not [name for name, size in seen.items() if size == 0]

def test_a_step_ascends(case):
    model, x = build(case).train(), binary_images(32)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 2e-2)
    config = TrainConfig(n_samples=4)
    torch.manual_seed(0)
    elbos = [(t[0] - t[1]).item()
             for t in (train_step(model, optimizer, x, 1., 100, config) for _ in range(30))]
    assert sum(elbos[-5:]) / 5 > sum(elbos[:5]) / 5 + 0.5

def test_bounds_are_ordered(case):
    model, x = build(case, scale=0.1), binary_images(60).repeat(30, 1, 1, 1)
    # a posterior found by gradients is too good for a mild decoder to part the bounds
    perturb(model.decoder, 2. if model.encoder.needs_grad else 0.4)
    r5, r100 = (estimate_batch(model, x, k, rows=100_000, generator=seeded(k)) for k in (5, 100))
    per_image = lambda v: v.detach().reshape(30, 60).mean(0)
    assert_positive(per_image(r5.iwae - r5.elbo))
    assert_positive(per_image(r100.iwae - r5.iwae))
    assert (r5.ess >= 1 - 1e-9).all() and (r5.ess <= 5 + 1e-9).all() and (r100.ess <= 100 + 1e-9).all()

def test_saved_and_loaded(case, tmp_path):
    model, other, x = build(case), build(case, seed=1), binary_images(5)
    draw = lambda m: m.posterior(x).rsample_and_log_prob(3, seeded())
    assert not torch.equal(draw(model)[0], draw(other)[0])
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for a, b in zip(draw(model), draw(other)):
        assert torch.equal(a, b)

@pytest.mark.parametrize("training", [True, False])
def test_deterministic_under_a_seed(case, training):
    model, x = build(case).train(training), binary_images(5)
    def draw(seed):
        copied = copy.deepcopy(model) # a posterior in training may move running moments
        torch.manual_seed(seed)
        return copied.posterior(x).rsample_and_log_prob(3)
    for a, b, c in zip(draw(0), draw(0), draw(1)):
        assert torch.equal(a, b) and not torch.equal(a, c)

def test_initialised_by_the_seed(case):
    a, b, c = (build(case, seed=seed, scale=0.) for seed in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(next(trunk_of(a).parameters()), next(trunk_of(c).parameters()))

def test_images_do_not_see_each_other(case):
    model, x = build(case), binary_images(7)
    z = torch.randn(3, 7, 2, generator=seeded(), dtype=F64)
    whole = model.posterior(x)
    for i in range(7):
        alone = model.posterior(x[i:i + 1])
        torch.testing.assert_close(alone.mean[0], whole.mean[i], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(alone.log_prob(z[:, i:i + 1])[:, 0], whole.log_prob(z)[:, i], rtol=1e-10,
                                   atol=1e-10)

@pytest.mark.parametrize("call", ["posterior", "elbo", "estimate_batch"])
def test_no_images(case, call):
    model, x = build(case), binary_images(0)
    with pytest.raises(InputError, match="at least one image"):
        estimate_batch(model, x, 5) if call == "estimate_batch" else getattr(model, call)(x)

def test_same_decoder_and_trunk_for_all_methods():
    "Methods differ in nothing but their encoders' heads."
    models = [build((method, {}), scale=0.) for method in METHODS]
    for part in (lambda m: m.decoder, trunk_of):
        first, *others = ([p for p in part(m).parameters()] for m in models)
        for other in others:
            assert all(torch.equal(p, q) for p, q in zip(first, other))

def test_options_of_the_methods_are_listed():
    assert {"covariance", "temperature", "mode"} <= set(encoder_options("gpvae"))
    assert not set(encoder_options("vae")) & {"trunk", "h_dim", "z_dim"}

def test_options_of_the_methods_are_no_settings_of_a_budget():
    "One name would change both: `k` is the number of importance samples, whatever a method calls its steps."
    assert not [(method, name) for method in METHODS
                for name in set(encoder_options(method)) & set(SECTION_OF)]
