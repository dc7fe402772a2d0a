"""Annealed importance sampling: the integrator, the transitions, exact answers from both sides, images that
do not know of each other, and runs that resume. All in float64."""
import gc
import math
import warnings
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from gpvae.evaluation.ais import (AISConfig, Bridge, _step_at, _adapt, ais, anneal, _forward, _reverse,
                                  annealing_mode, fingerprint, leapfrog, sandwich, simulate, state_at,
                                  transition)
from gpvae.checks import InputError
from gpvae.data import load, prepare_splits
from gpvae.evaluation.iwae import estimate_batch
from gpvae.likelihoods import Bernoulli, Likelihood
from gpvae.networks import mlp_decoder, mlp_trunk
from gpvae.inference.best_gaussian import Climb
from gpvae.posteriors import DiagonalGaussian, FullGaussian, GaussianMixture
from gpvae.study.methods import METHODS
from gpvae.training import TrainConfig, train
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.vae import VAE
from toys import (F64, SHAPE, Z, Call, LinearGaussian, assert_zero, bernoulli_model, binary_images, seeded)
from test_contract import build

class Stop(Exception):
    pass

SHORT = AISConfig(temperatures=6, chains=4, leapfrog_steps=2)

@pytest.fixture
def brief(monkeypatch):
    "A pilot of few temperatures, where its quality does not matter."
    monkeypatch.setattr("gpvae.evaluation.ais._PILOT_TEMPERATURES", 5)

@pytest.fixture(autouse=True)
def without_graph():
    with torch.no_grad():
        yield

def close(a, b, tol=1e-10): torch.testing.assert_close(a, b, rtol=tol, atol=tol)
def normal(*shape, seed=0): return torch.randn(shape, generator=seeded(seed), dtype=F64)
def pixels(n): return (255 * torch.rand((n, *SHAPE), generator=seeded())).byte()
def bernoulli(): return bernoulli_model(Call(None)).eval()
def full(lg, x):
    "A full Gaussian beside the posterior: moved, wider and turned."
    turn = torch.tensor([[1., 0.], [0.6, 0.8]], dtype=F64)
    L = torch.linalg.cholesky(turn @ lg.cov @ turn.T * 1.5)
    return FullGaussian(lg.mean(x) + 0.15, L.expand(len(x), Z, Z))
def linear(n, q0="prior", seed=0):
    lg = LinearGaussian()
    x = lg.images(n)
    return lg, x, Bridge(lg.model(lg.rough), x,
                         {"prior": None, "rough": lg.rough(x), "full": full(lg, x), "exact": lg.exact(x)}[q0],
                         range(n), seed)

# --- the leapfrog ---------------------------------------------------------------------------------

def trajectory(model, x, z, v, step, L, beta=0.7):
    start = state_at(model, x, None, z)
    return start, *leapfrog(partial(state_at, model, x, None), start, v, beta,
                            torch.full((len(x), 1), step, dtype=F64), L)

def test_leapfrog_runs_back():
    model, x, z, v = bernoulli(), binary_images(3), normal(4, 3, 2), normal(4, 3, 2, seed=1)
    _, end, w = trajectory(model, x, z, v, 0.1, 20)
    _, back, u = trajectory(model, x, end.z, -w, 0.1, 20)
    assert (end.z - z).abs().max() > 0.5
    assert (back.z - z).abs().max() < 1e-10 and (u + v).abs().max() < 1e-10

def test_leapfrog_preserves_volume():
    lg, x, _ = linear(1)
    def moved(y):
        _, end, v = trajectory(lg.model(lg.rough), x, y[:, None, :Z], y[:, None, Z:], 0.1, 20)
        return torch.cat([end.z, v], -1)[:, 0]
    jacobian = moved(torch.eye(2 * Z, dtype=F64)) - moved(torch.zeros(1, 2 * Z, dtype=F64))
    assert abs(torch.linalg.det(jacobian) - 1) < 1e-10

def test_leapfrog_keeps_the_energy_to_second_order():
    lg, x, _ = linear(3)
    z, v = normal(4, 3, Z), normal(4, 3, Z, seed=1)
    energy = lambda state, v: 0.5 * v.square().sum(-1) - state.log_f(0.7)
    errors = []
    for n in (1, 2):
        start, end, w = trajectory(lg.model(lg.rough), x, z, v, 0.01 / n, 10 * n)
        errors.append((energy(end, w) - energy(start, v)).abs().mean().item())
    assert errors[0] < 0.1 and 3.8 < errors[0] / errors[1] < 4.2

def test_in_units_of_u_it_is_the_leapfrog_of_u():
    "The dynamics of f(μ + F u) by automatic differentiation, for a lower triangular F of each image."
    lg, x, bridge = linear(3, "full")
    F, mu, eps = bridge.units, bridge.q0.mu, 0.2
    u, v = normal(4, 3, Z), normal(4, 3, Z, seed=1)
    z_of = lambda u: mu + torch.einsum("bij,sbj->sbi", F, u)
    log_f = lambda u: (0.3 * bridge.q0.log_prob(z_of(u)) + 0.7 * bridge.model.log_joint(x, z_of(u))).sum()
    end, w = leapfrog(bridge.at, bridge.at(z_of(u)), v, 0.7, torch.full((3, 1), eps, dtype=F64), 3, F)
    for _ in range(3):
        v = v + 0.5 * eps * torch.func.grad(log_f)(u)
        u = u + eps * v
        v = v + 0.5 * eps * torch.func.grad(log_f)(u)
    close(end.z, z_of(u))
    close(w, v)

# --- transitions ----------------------------------------------------------------------------------

def hmc(at, z, step, n, L=5, seed=0):
    "The states after n transitions at β = 1, and the mean acceptance."
    state, g, acceptance = at(z), seeded(seed), 0
    for _ in range(n):
        state, accept = transition(at, state, 1., torch.full((z.shape[1],), step, dtype=F64), L,
                                   torch.randn(*z.shape[:2], z.shape[2] + 2, generator=g, dtype=F64))
        acceptance += accept.mean().item() / n
    return state.z, acceptance

def assert_posterior(lg, x, z):
    """Samples of the exact posterior are uniform, and independent, after whitening and the normal
    distribution function: bounded, so that no stray chain hides behind its own error."""
    e = (z - lg.mean(x)) @ torch.linalg.inv(torch.linalg.cholesky(lg.cov)).T
    u = torch.special.ndtr(e) - 0.5
    for i in range(len(x)):
        for j in range(Z):
            assert_zero(u[:, i, j])
            assert_zero(u[:, i, j].square() - 1 / 12)
        assert_zero(u[:, i].prod(-1))

def test_transition_leaves_the_posterior_alone():
    "Exact samples stay exact samples, with a step of which half the proposals are refused."
    lg, x, bridge = linear(2)
    z, acceptance = hmc(bridge.at, lg.exact(x).rsample_and_log_prob(4000, seeded())[0], 0.28, 5)
    assert 0.3 < acceptance < 0.7
    assert_posterior(lg, x, z)

def test_moments_from_the_prior_are_the_posteriors():
    lg, x, bridge = linear(2)
    z, _ = hmc(bridge.at, normal(4000, 2, Z), 0.2, 25)
    assert_posterior(lg, x, z)
    for i in range(2):
        assert_zero((z - lg.mean(x))[:, i])
        assert_zero((z - lg.mean(x))[:, i].prod(-1) - lg.cov[0, 1])

def pyro_moments(model, x, copies=50, n=60):
    """[copies, 2, Z] first and second moments of the posterior of one image, by Pyro's Hamiltonian Monte
    Carlo on independent copies of z."""
    import pyro
    from pyro.infer import HMC, MCMC
    pyro.set_rng_seed(0)
    with torch.enable_grad(), frozen_weights(model):
        kernel = HMC(potential_fn=lambda p: -model.log_joint(x, p["z"][:, None]).sum(), step_size=0.3,
                     num_steps=5)
        mcmc = MCMC(kernel, num_samples=n, warmup_steps=30,
                    initial_params={"z": torch.zeros(copies, 2, dtype=F64)}, disable_progbar=True)
        mcmc.run()
    z = mcmc.get_samples()["z"]
    return torch.stack([z.mean(0), z.square().mean(0)], 1)

class frozen_weights:
    def __init__(self, model): self.model = model
    def __enter__(self): self.model.requires_grad_(False)
    def __exit__(self, *error): self.model.requires_grad_(True)

def test_moments_are_pyros():
    model, x = bernoulli(), binary_images(1)
    theirs = pyro_moments(model, x)
    z, _ = hmc(partial(state_at, model, x, None), normal(3000, 1, 2), 0.4, 15)
    ours = torch.stack([z[:, 0], z[:, 0].square()], 1)
    se = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * se).all()
    # so that it is not the prior which agrees
    assert (theirs.mean(0) - torch.tensor([[0., 0.], [1., 1.]], dtype=F64)).abs().max() > 10 * se.max()

# --- the weights ----------------------------------------------------------------------------------

@pytest.mark.parametrize("schedule", ["linear", "sigmoidal"])
@pytest.mark.parametrize("start", ["prior", "rough", "full"])
def test_the_mean_weight_is_the_likelihood(start, schedule, brief):
    "Exactly, with any number of temperatures; and the mean of one over the reverse weight is one over it."
    n, (lg, x, bridge) = 4000, linear(1, start)
    config = replace(SHORT, temperatures=40 if start == "prior" else 3, chains=n, schedule=schedule)
    log_steps, exact = _adapt(bridge, config), lg.log_px(x)
    g = bridge.generators("forward")
    up, _ = anneal(bridge, bridge.start(n, g), log_steps, config, bridge.noise(n, g))
    z = lg.exact(x).rsample_and_log_prob(n, seeded())[0]
    down, _ = anneal(bridge, bridge.at(z), log_steps, config, bridge.noise(n, bridge.generators("reverse")),
                     reverse=True)
    for log_ratio in (up - exact, exact - down): # both are ratios of mean one, and of no small variance
        assert log_ratio.std() > 0.1
        assert_zero(log_ratio.exp() - 1)

@pytest.mark.parametrize("T", [1, 5])
def test_from_the_exact_posterior_every_weight_is_exact(T, brief):
    lg, x, bridge = linear(3, "exact")
    config = replace(SHORT, temperatures=T)
    log_steps = _adapt(bridge, config)
    z = lg.exact(x).rsample_and_log_prob(1, seeded())[0][0]
    for r in (_forward(bridge, log_steps, config), _reverse(bridge, z, log_steps, config)):
        close(r.log_px, lg.log_px(x))
        close(r.ess, torch.full_like(r.ess, config.chains))
        assert r.error(config.chains).max() < 1e-5

def test_linear_gaussian_likelihood_within_its_own_error():
    lg = LinearGaussian()
    x, config = pixels(20), AISConfig(temperatures=60, chains=32, leapfrog_steps=3)
    r = ais(lg.model(lg.rough), x, config, "none", rows=640)
    error, scaled = r.error(32), (r.log_px - lg.log_px(x / 255)) / r.error(32)
    assert error.max() < 0.5 and scaled.abs().max() < 5 and 0.5 < scaled.square().mean().sqrt() < 1.6
    assert r.log_px.dtype == r.ess.dtype == F64 and (r.ess > 4).all() and (r.ess <= 32 + 1e-9).all()
    assert ((r.acceptance > 0.5) & (r.acceptance <= 1)).all()

@pytest.mark.parametrize("start", ["prior", "posterior", "best", "curvature"])
def test_it_agrees_with_iwae_at_large_k(start):
    model, x = bernoulli(), binary_images(6)
    model.encoder = Call(
        lambda x: DiagonalGaussian(x.new_full((len(x), 2), 0.2), x.new_full((len(x), 2), 0.1))
    )
    many = estimate_batch(model, x, 50_000, rows=60_000, generator=seeded())
    r = ais(model, (255 * x).byte(), AISConfig(temperatures=50, chains=64, leapfrog_steps=2, start=start))
    error = (r.error(64).square() + 1 / many.ess).sqrt()
    assert ((r.log_px - many.iwae).abs() < 4 * error).all() and error.max() < 0.3 and many.ess.min() > 100

def test_sides_are_ordered_and_both_are_exact_on_average(brief):
    """Over images: the lower side's exponential has the mean p(x), and the upper's inverse the mean 1/p(x),
    whatever the number of chains."""
    lg, x, bridge = linear(400)
    config = replace(SHORT, temperatures=20, leapfrog_steps=3)
    log_steps, z = _adapt(bridge, config), lg.exact(x).rsample_and_log_prob(1, seeded())[0][0]
    below = _forward(bridge, log_steps, config).log_px - lg.log_px(x)
    above = _reverse(bridge, z, log_steps, config).log_px - lg.log_px(x)
    assert below.mean() < -0.05 and above.mean() > 0.05
    assert_zero(below.exp() - 1)
    assert_zero((-above).exp() - 1)

# --- the step size --------------------------------------------------------------------------------

def test_fresh_chains_accept_as_often_as_the_pilot_aimed():
    """At β = 1, where no step size is at its largest, for images of different scale; and the largest is kept
    elsewhere."""
    lg, x, bridge = linear(6)
    config = replace(SHORT, leapfrog_steps=3)
    log_steps = _adapt(bridge, config)
    assert log_steps.exp().max() <= math.pi / 6 + 1e-9
    assert (_step_at(log_steps, 1.) < 0.95 * math.pi / 6).all()
    state, accepted = bridge.at(lg.exact(x).rsample_and_log_prob(400, seeded())[0]), []
    for i in range(4):
        state, accept = transition(bridge.at, state, 1., _step_at(log_steps, 1.), 3,
                                   normal(400, 6, Z + 2, seed=i))
        accepted.append(accept.mean(0))
    assert (torch.stack(accepted).mean(0) - 0.65).abs().max() < 0.2
    assert abs(torch.stack(accepted).mean() - 0.65) < 0.1

def test_step_sizes_are_interpolated():
    log_steps = torch.tensor([[0., 1.], [2., 3.]], dtype=F64)
    for u, expected in ((0., [0, 1]), (0.5, [0, 1]), (0.75, [1, 2]), (1., [2, 3])):
        close(_step_at(log_steps, u), torch.tensor(expected, dtype=F64).exp())

# --- images do not know of each other -------------------------------------------------------------

@pytest.mark.parametrize("start", ["prior", "posterior", "best", "curvature"])
def test_results_do_not_depend_on_chunks(start, brief, monkeypatch):
    # need not arrive to be each image's own
    monkeypatch.setattr("gpvae.evaluation.ais.Climb", partial(Climb, steps=100))
    lg, x, config = LinearGaussian(), pixels(5), replace(SHORT, start=start)
    model = lg.model(lg.rough)
    whole = ais(model, x, config, "none", rows=1000)
    for rows in (1, 12):
        for a, b in zip(ais(model, x, config, "none", rows=rows), whole):
            close(a, b, 1e-9)
    for a, b in zip(ais(model, x[3:], config, "none", index=range(3, 5)), whole):
        close(a, b[3:], 1e-9)
    other = ais(model, x, replace(config, seed=1), "none")
    # not the estimates: from the exact posterior they are all exact
    assert (other.acceptance - whole.acceptance).abs().min() > 1e-9
    if start != "curvature":
        assert (other.log_px - whole.log_px).abs().min() > 1e-6

@pytest.mark.parametrize("method", METHODS)
def test_samples_of_every_posterior_do_not_depend_on_chunks(method):
    model, x = build((method, {})), binary_images(5)
    whole, part = (Bridge(model, x[i], model.posterior(x[i]), i) for i in ([0, 1, 2, 3, 4], [1, 3]))
    a, b = (bridge.start(3, bridge.generators("forward")) for bridge in (whole, part))
    for u, v in zip(a, b):
        close(u[:, [1, 3]], v, 1e-9)

def test_one_evaluation_a_step_and_no_gradient_of_weights(brief):
    lg, rows = LinearGaussian(), []
    model, x = lg.model(lg.rough), pixels(5)
    lg.decoder.register_forward_hook(
        lambda m, args, out: rows.append((out.shape[:2].numel(), m.weight.requires_grad))
    )
    ais(model, x, SHORT, "none", rows=12)
    pilot, weighted = 1 + 5 * 4 * SHORT.leapfrog_steps, 1 + SHORT.temperatures * SHORT.leapfrog_steps
    assert rows == [(12, False)] * (pilot + weighted) + [(8, False)] * (pilot + weighted)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())

def test_memory_does_not_grow_with_the_temperatures(brief):
    lg, x, bridge = linear(2)
    alive, calls = {}, []
    def count(*_):
        calls.append(1)
        if len(calls) % 41 == 0:
            alive[T] = max(alive.get(T, 0),
                           sum(t.numel() for t in gc.get_objects() if type(t) is torch.Tensor))
    lg.decoder.register_forward_hook(count)
    for T in (20, 80):
        config = replace(SHORT, temperatures=T)
        _forward(bridge, _adapt(bridge, config), config)
    assert alive[80] <= alive[20] * 1.01

def test_it_works_where_gradients_are_switched_off(brief):
    lg, x = LinearGaussian(), pixels(2)
    with torch.inference_mode():
        r = ais(lg.model(lg.rough), x.clone(), replace(SHORT, start="posterior"), "none")
    close(r.log_px, ais(lg.model(lg.rough), x, replace(SHORT, start="posterior"), "none").log_px)

def test_the_model_is_left_as_it_was():
    "Parts that train, parts that do not, and weights that take no gradient."
    lg = LinearGaussian()
    model = lg.model(lg.rough).train()
    model.decoder.eval()
    lg.decoder.bias.requires_grad_(False)
    state = lambda: ([part.training for part in model.modules()],
                     [p.requires_grad for p in model.parameters()])
    before, inside = state(), []
    with annealing_mode(model):
        inside.append(state())
    with pytest.raises(Stop), annealing_mode(model):
        raise Stop
    assert state() == before and not any(map(any, inside[0]))

# --- a start that is known, and pixels ------------------------------------------------------------

def test_a_given_start_takes_the_place_of_the_configured_one(tmp_path, brief):
    "Sliced by image, whatever the chunks; made under inference mode too; and the file is of this start."
    lg, x, path = LinearGaussian(), pixels(5), tmp_path / "ais.safetensors"
    start = replace(SHORT, start="posterior")
    model = lg.model(lg.rough)
    with torch.inference_mode():
        q0 = lg.rough(x / 255)
    for rows in (1000, 8):
        for a, b in zip(ais(model, x, SHORT, "none", rows=rows, q0=q0),
                        ais(model, x, start, "none", rows=rows)):
            close(a, b, 1e-12)
    ais(model, x, SHORT, "none", path=path, q0=q0)
    for other in (None, q0.inflate(1.1)):
        with pytest.raises(InputError, match="belongs to"):
            ais(model, x, SHORT, "none", path=path, q0=other)

def test_starts_that_cannot_be_sliced():
    lg, x = LinearGaussian(), pixels(3)
    model, q = lg.model(lg.rough), lg.rough(x)
    with pytest.raises(InputError, match="^q0 is of 2 images, and there are 3: pass a Gaussian of each$"):
        ais(model, x, SHORT, "none", q0=lg.rough(x[:2]))
    mixture = GaussianMixture(q.mu[None], q.log_sigma[None], torch.zeros(1, 3, dtype=F64))
    with pytest.raises(InputError, match="^q0 is a GaussianMixture: pass a DiagonalGaussian or FullGaussian"):
        ais(model, x, SHORT, "none", q0=mixture)

def test_pixels_are_bytes_or_by_name_floats(brief):
    lg, x = LinearGaussian(), pixels(3)
    model = lg.model(lg.rough)
    close(ais(model, x / 255, SHORT, "floats").log_px, ais(model, x, SHORT, "none").log_px)
    with pytest.raises(InputError, match="^pixels are float32: pass uint8"):
        ais(model, x / 255, SHORT, "none")
    with pytest.raises(InputError, match="^pixels run to 1, not to 255"):
        ais(model, x.clamp(max=1), SHORT, "none")

def test_numbers_of_numpy(tmp_path, brief):
    lg, x, path = LinearGaussian(), pixels(3), tmp_path / "ais.safetensors"
    model, index = lg.model(lg.rough), list(np.arange(4, 7))
    r = ais(model, x, SHORT, "none", index=range(4, 7), path=path)
    for where in (path, None):
        assert torch.equal(r.log_px, ais(model, x, SHORT, "none", index=index, path=where).log_px)
    assert fingerprint(model, x, index, a=np.int64(1)) == fingerprint(model, x, range(4, 7), a=1)

# --- files ----------------------------------------------------------------------------------------

def test_a_stopped_run_ends_with_the_same_numbers(tmp_path, brief):
    lg, x, path, done = LinearGaussian(), pixels(7), tmp_path / "ais.safetensors", []
    model = lg.model(lg.rough)
    def stop(n):
        done.append(n)
        if sum(done) >= 4:
            raise Stop
    with pytest.raises(Stop):
        ais(model, x, SHORT, "none", rows=8, path=path, progress=stop)
    assert all(p.requires_grad for p in model.parameters()) # also after an exception
    again = []
    r = ais(model, x, SHORT, "none", rows=8, path=path, progress=again.append)
    assert done == [2, 2] and again == [4, 2, 1]
    for a, b in zip(r, ais(model, x, SHORT, "none", rows=8)):
        assert torch.equal(a, b)
    finished = []
    for a, b in zip(ais(model, x, SHORT, "none", path=path, progress=finished.append), r):
        assert torch.equal(a, b)
    assert finished == [7] and [f.name for f in tmp_path.iterdir()] == ["ais.safetensors"]

def test_a_file_of_something_else_is_refused(tmp_path, brief):
    lg, x, path = LinearGaussian(), pixels(3), tmp_path / "ais.safetensors"
    model = lg.model(lg.rough)
    ais(model, x, SHORT, "none", path=path)
    before = path.read_bytes()
    changes = [dict(config=replace(SHORT, **{k: v}))
               for k, v in dict(temperatures=7, chains=5, leapfrog_steps=1, schedule="linear",
                                start="posterior", acceptance=0.6, seed=1).items()]
    for change in changes + [dict(x=x.flip(0)), dict(index=[0, 1, 5])]:
        with pytest.raises(InputError, match=r"belongs to \w{12}, not to \w{12}: settings, images or weights "
                                             "differ, use another file or delete it$"):
            ais(model, **{"x": x, "config": SHORT, "binarisation": "none", "path": path} | change)
    lg.decoder.bias.add_(1)
    with pytest.raises(InputError, match="belongs to"):
        ais(model, x, SHORT, "none", path=path)
    assert path.read_bytes() == before
    path.write_bytes(before[:-9])
    with pytest.raises(InputError, match="is damaged"):
        ais(model, x, SHORT, "none", path=path)
    with pytest.raises(InputError, match="there is no folder"):
        ais(model, x, SHORT, "none", path=tmp_path / "no" / "file")

# --- images and input that cannot work ------------------------------------------------------------

class Faulty(nn.Module):
    "A decoder that returns NaN for some z."
    def __init__(self, decoder, where):
        super().__init__()
        self.decoder, self.where = decoder, where
    def forward(self, z): return torch.where(self.where(z)[..., None], math.nan, self.decoder(z))

@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_nan_stays_in_its_image_and_is_named(start, tmp_path, brief):
    lg, x, path = LinearGaussian(), pixels(5), tmp_path / "ais.safetensors"
    config = replace(SHORT, start=start)
    model = lg.model(lg.rough)
    good = ais(model, x, config, "none")
    model.decoder = Faulty(lg.decoder, lambda z: (torch.arange(z.shape[1]) == 2).expand(z.shape[:2]))
    for _ in range(2): # the second time from the file
        with pytest.warns(UserWarning, match="not finite for images 12: the decoder"):
            r = ais(model, x, config, "none", range(10, 15), path=path)
        assert r.failed == [2] and all(column.isnan().nonzero().flatten().tolist() == [2] for column in r)
    assert r.log_px.mean().isnan() # nothing is dropped
    with pytest.warns(UserWarning):
        r = ais(model, x, config, "none")
    for a, b in zip(good, r):
        close(a[[0, 1, 3, 4]], b[[0, 1, 3, 4]], 1e-9)

def test_nan_that_only_a_trajectory_meets_is_no_rejection(brief):
    "Every chain starts where the decoder works, and is driven to where it does not."
    lg, x = LinearGaussian(), pixels(3)
    model = lg.model(lg.rough)
    started = []
    def where(z):
        started.append(1)
        return (torch.arange(3) == 1) & (len(started) > 5 * 4 * 2 + 4) # after the pilot
    model.decoder = Faulty(lg.decoder, where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ais(model, x, SHORT, "none").failed == [1]

def test_a_finite_result_warns_of_nothing(brief):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ais(LinearGaussian().model(None), pixels(2), SHORT, "none").failed == []

class Unscored(Likelihood):
    "Gaussian pixels, and nothing but their log-likelihood."
    def __init__(self, likelihood):
        super().__init__()
        self.inner = likelihood
    def log_px_z(self, eta, x): return self.inner.log_px_z(eta, x)

def test_a_likelihood_that_has_no_score_is_differentiated(brief):
    lg = LinearGaussian()
    model, scored, z = VAE(Call(None), lg.decoder, Unscored(lg.likelihood)), lg.model(None), normal(3, 2, Z)
    for value in (True, False):
        close(*(state_at(m, lg.images(2), None, z, value).grad_delta for m in (model, scored)))
    close(ais(model, pixels(2), SHORT, "none").log_px, ais(scored, pixels(2), SHORT, "none").log_px)

def test_gradients_alone_are_those_of_the_value():
    "On the way of a trajectory nothing else is computed."
    model, x, z = bernoulli(), binary_images(3), normal(4, 3, 2)
    with torch.enable_grad():
        leaf = z.clone().requires_grad_()
        grad, = torch.autograd.grad(model.log_px_z(x, leaf).sum(), leaf)
    for value in (True, False):
        close(state_at(model, x, None, z, value).grad_delta, grad)
    assert state_at(model, x, None, z, value=False).delta is None
    close(state_at(model, x, None, z).delta, model.log_px_z(x, z))

class Hard(Likelihood):
    "A likelihood that reads the decoder's output, and lets no gradient through."
    def __init__(self, cut):
        super().__init__()
        self.cut = cut
    def log_px_z(self, eta, x): return -(x - self.cut(eta)).square().sum(-1)

CUTS = {"detached": lambda eta: eta.detach(),
        "compared": lambda eta: (eta > 0).to(eta),
        "constant": lambda eta: torch.zeros_like(eta)}

@pytest.mark.parametrize("cut", CUTS)
def test_a_likelihood_without_gradient(cut, brief):
    lg = LinearGaussian()
    model = VAE(Call(None), lg.decoder, Hard(CUTS[cut]))
    with pytest.raises(InputError, match=r"^log p\(x\|z\) does not depend differentiably on z: .*$"):
        ais(model, pixels(2), SHORT, "none")
    # its weights take gradients
    with pytest.raises(InputError, match="does not depend differentiably"):
        state_at(model, lg.images(2), None, normal(3, 2, Z))

WRONG = {
    "temperatures": (dict(temperatures=0), "^temperatures is 0: annealing needs at least one temperature$"),
    "chains": (dict(chains=0), "^chains is 0: annealing needs at least one chain$"),
    "steps": (dict(leapfrog_steps=0), "^leapfrog_steps is 0: annealing needs at least one leapfrog step$"),
    "negative": (dict(temperatures=-5), "^temperatures is -5: "),
    "acceptance": (dict(acceptance=1.), "^acceptance is 1.0: aim between 0 and 1"),
    "schedule": (dict(schedule="sigmoid"), "^schedule 'sigmoid' is unknown: did you mean 'sigmoidal'"),
    "start": (dict(start="postrior"), "^start 'postrior' is unknown: did you mean 'posterior'"),
}

@pytest.mark.parametrize("name", WRONG)
def test_a_configuration_that_cannot_work(name):
    settings, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        AISConfig(**settings)

def test_images_that_cannot_work():
    lg = LinearGaussian()
    model = lg.model(lg.rough)
    with pytest.raises(InputError, match="^no images to evaluate: the split is empty$"):
        ais(model, pixels(0), SHORT, "none")
    with pytest.raises(InputError, match="^index has 2 numbers for 3 images: pass one per image$"):
        ais(model, pixels(3), SHORT, "none", index=[0, 1])
    with pytest.raises(InputError, match="^n is 0: simulate at least one image$"):
        sandwich(model, 0, SHAPE, SHORT)

def test_the_configuration_is_what_the_file_is_named_by():
    "A new field of the configuration is part of the key by itself."
    assert set(asdict(SHORT)) == {"temperatures", "chains", "leapfrog_steps", "schedule", "start",
                                  "acceptance", "seed"}

# --- the sandwich ---------------------------------------------------------------------------------

def test_simulated_images_come_with_their_latents():
    lg = LinearGaussian()
    x, z = simulate(lg.model(None), 4000, SHAPE, seed=3)
    assert x.shape == (4000, *SHAPE) and z.shape == (4000, Z)
    residual = x.flatten(1) - lg.decoder(z)
    assert_zero(residual)
    assert_zero(residual.square() - lg.s**2)
    assert_zero(z)
    assert_zero(z.square() - 1)
    assert torch.equal(x, simulate(lg.model(None), 4000, SHAPE, seed=3)[0])

def test_the_sandwich_holds_the_exact_value():
    lg, done = LinearGaussian(), []
    model, config = lg.model(None), AISConfig(temperatures=60, chains=16, leapfrog_steps=2)
    r = sandwich(model, 30, SHAPE, config, rows=16 * 20, progress=done.append)
    exact = lg.log_px(simulate(model, 30, SHAPE)[0])
    assert done == [20, 10] and torch.equal(r.gap, r.upper.log_px - r.lower.log_px)
    below, above = (4 * (side.error(16).square().mean() / 30).sqrt() for side in r)
    assert r.lower.log_px.mean() - below < exact.mean() < r.upper.log_px.mean() + above
    assert below + above < 0.5 and r.gap.mean().abs() < 0.3

@pytest.fixture(scope="module")
def digits():
    "A model with ten latents, trained on digits for seconds; and the shape of its images."
    torch.manual_seed(0)
    images = load("digits")
    splits = prepare_splits(images, "stochastic")
    model = VAE(AmortizedEncoder(mlp_trunk(images.x_shape, (64, 64)), 64, 10),
                mlp_decoder(10, images.x_shape, (64, 64)),
                Bernoulli())
    with torch.enable_grad():
        trainer = train(model, splits.train, splits.valid, splits.train_binarisation,
                        TrainConfig(epochs=12, batch_size=32, lr=3e-3, kl_warmup=5), bar=False)
    assert trainer.history[-1]["valid_active"] >= 5
    return model.double(), images.x_shape

def test_the_sandwich_closes_on_a_trained_model(digits):
    model, x_shape = digits
    rough, fine = (sandwich(model, 20, x_shape, AISConfig(temperatures=T, chains=16, leapfrog_steps=3))
                   for T in (1, 80))
    assert rough.gap.mean() > 1 and -0.1 < fine.gap.mean() < 0.1 and fine.gap.abs().max() < 0.8
    assert fine.lower.ess.mean() > 8 and fine.lower.log_px.mean() > rough.lower.log_px.mean()
