"The training loop: what a step does, which epoch is kept, what is random and what is not."
import dataclasses
import math

import pytest
import torch
from torch import nn

from gpvae.data import to_float
from gpvae.evaluation.iwae import evaluate
from gpvae.likelihoods import Bernoulli
from gpvae.networks import mlp_decoder, mlp_trunk
from gpvae.posteriors import gaussian_kl
from gpvae.train import NonFinite, TrainConfig, Trainer, active_units, adam, beta, learning_rate, load_checkpoint, train, train_step, validation_bound
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.vae import VAE
from toys import bernoulli_model, binary_images, gp_encoder, seeded

SHAPE = (1, 4, 4)
CONFIG = TrainConfig(epochs=4, batch_size=16, lr=1e-2, kl_warmup=0, checkpoint_seconds=0.)

def small(seed=0):
    "An untrained VAE of 4×4 pixels."
    torch.manual_seed(seed)
    return VAE(AmortizedEncoder(mlp_trunk(SHAPE, (8,)), 8, 2), mlp_decoder(2, SHAPE, (8,)), Bernoulli())

def images(n, seed=0):
    "Two kinds of images with some noise, uint8, binary."
    g = seeded(seed)
    kind = torch.rand(n, 1, 1, 1, generator=g) < 0.5
    ink = torch.where(kind, torch.linspace(0, 1, 16).reshape(SHAPE), torch.linspace(1, 0, 16).reshape(SHAPE))
    return (255 * (torch.rand(n, *SHAPE, generator=g) < ink)).byte()

def fit(config=CONFIG, n=65, binarisation="static", seed=0, x=None, path=None, model=None, **kwargs):
    "Train a small model; the global seed is moved before, since it must not matter."
    model = small() if model is None else model
    torch.manual_seed(1234)
    trainer = train(model, images(n) if x is None else x, images(40, seed=1), binarisation, dataclasses.replace(config, seed=seed), path, bar=False, **kwargs)
    return model, trainer

def history(trainer): return [{k: v for k, v in h.items() if k != "seconds"} for h in trainer.history]
def weights(model): return torch.cat([v.flatten() for v in model.state_dict().values()])

# --- one step ------------------------------------------------------------------------------------------------------------------------------

class Recorder(torch.optim.SGD):
    "An optimiser that keeps the gradients it is given, and moves nothing."
    def step(self): self.seen = [p.grad.clone() for g in self.param_groups for p in g["params"]]

def gradients(model, x, beta=1., config=CONFIG, n_train=100):
    "The gradients that one step hands to the optimiser, and the recorded terms."
    optimizer = Recorder([p for p in model.parameters() if p.requires_grad], 0.)
    torch.manual_seed(0)
    terms = train_step(model, optimizer, x, beta, n_train, config)
    return optimizer.seen, terms

def test_step_is_the_gradient_of_the_objective():
    model, x = bernoulli_model(gp_encoder(temperature=3.)).train(), binary_images(6)
    seen, terms = gradients(model, x, beta=0.4, config=dataclasses.replace(CONFIG, max_norm=1e9))
    torch.manual_seed(0)
    q = model.posterior(x)
    z, _ = q.rsample_and_log_prob(1)
    log_px_z = (x.flatten(1) * model.decoder(z) - nn.functional.softplus(model.decoder(z))).sum(-1).mean()
    kl = gaussian_kl(q.mu, q.log_sigma).mean()
    weight_kl = (model.encoder.W.kl() + model.encoder.U.kl()) / 300
    expected = torch.autograd.grad(-(log_px_z - 0.4 * kl - weight_kl), [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    for a, b in zip(seen, expected, strict=True): torch.testing.assert_close(a, b)
    torch.testing.assert_close(terms[:3].double(), torch.stack([log_px_z, kl, weight_kl]).detach().double())

def test_gradient_is_clipped_and_its_norm_is_recorded():
    model, x = bernoulli_model(gp_encoder()).train(), binary_images(6)
    norm = lambda grads: torch.cat([g.flatten() for g in grads]).norm()
    free, terms = gradients(model, x, config=dataclasses.replace(CONFIG, max_norm=1e9))
    clipped, again = gradients(model, x, config=dataclasses.replace(CONFIG, max_norm=0.5))
    assert norm(free) > 2
    torch.testing.assert_close(terms[3], norm(free)); torch.testing.assert_close(again[3], norm(free))
    torch.testing.assert_close(norm(clipped), torch.tensor(0.5, dtype=torch.float64), rtol=1e-4, atol=0)
    for a, b in zip(free, clipped): torch.testing.assert_close(a * (0.5 / norm(free)), b, rtol=1e-4, atol=1e-12)

def test_warm_up_and_milestones():
    config = TrainConfig(kl_warmup=2, milestones=(3, 5), lr=1., lr_factor=0.1)
    assert [beta(s, 10, config) for s in (0, 9, 19, 20, 1000)] == [0.05, 0.5, 1., 1., 1.]
    assert [round(learning_rate(e, config), 6) for e in (0, 2, 3, 4, 5, 9)] == [1., 1., 0.1, 0.1, 0.01, 0.01]

def spy(monkeypatch):
    "Record what every step of the loop is given."
    import gpvae.train as module
    original, calls = module.train_step, []
    def step(model, optimizer, x, beta, n_train, config):
        calls.append(dict(x=x.clone(), beta=beta, n_train=n_train, lr=optimizer.param_groups[0]["lr"], training=model.training, noise=model.encoder.noise_scale))
        return original(model, optimizer, x, beta, n_train, config)
    monkeypatch.setattr(module, "train_step", step)
    return calls

def test_the_loop_follows_the_schedules(monkeypatch):
    calls = spy(monkeypatch)
    fit(TrainConfig(epochs=4, batch_size=16, kl_warmup=2, milestones=(1, 3), lr=1e-2, lr_factor=0.5), n=65)
    assert [len(c["x"]) for c in calls[:5]] == [16, 16, 16, 16, 1] # the last batch of one image counts
    assert len(calls) == 20 and all(c["n_train"] == 65 and c["training"] for c in calls)
    assert [c["lr"] for c in calls[::5]] == pytest.approx([1e-2, 5e-3, 5e-3, 2.5e-3])
    assert [c["beta"] for c in calls] == pytest.approx([min(1, (i + 1) / 10) for i in range(20)])

@pytest.mark.parametrize("noise_warmup, expected", [(0, [1.] * 10), (2, [(i + 1) / 10 for i in range(10)])])
def test_the_loop_warms_the_randomness_up(monkeypatch, noise_warmup, expected):
    calls = spy(monkeypatch)
    fit(dataclasses.replace(CONFIG, epochs=2, noise_warmup=noise_warmup), model=bernoulli_model(gp_encoder()).float())
    assert [c["noise"] for c in calls] == pytest.approx(expected)

def test_randomness_is_scaled():
    "Scale 0 is the mean; the scale multiplies the standard deviation of f and g."
    r = gp_encoder().functions(binary_images(3))
    none, half, whole = (r.draw(seeded(), scale) for scale in (0., 0.5, 1.))
    torch.testing.assert_close(none.mu, r.f_mean); torch.testing.assert_close(none.log_sigma, r.g_mean)
    torch.testing.assert_close(2 * (half.mu - none.mu), whole.mu - none.mu); torch.testing.assert_close(2 * (half.log_sigma - none.log_sigma), whole.log_sigma - none.log_sigma)

def test_each_epoch_sees_every_image_once_in_a_new_order(monkeypatch):
    calls = spy(monkeypatch)
    x = (torch.arange(65).reshape(-1, 1, 1, 1).expand(-1, *SHAPE)).byte().contiguous()
    fit(dataclasses.replace(CONFIG, epochs=2), x=x, binarisation="none")
    order = torch.cat([c["x"][:, 0, 0, 0] for c in calls]).mul(255).round().int().reshape(2, 65)
    assert torch.equal(order.sort(1).values, torch.arange(65, dtype=torch.int32).expand(2, -1))
    assert not torch.equal(order[0], order[1]) and not torch.equal(order[0], torch.arange(65, dtype=torch.int32))

def test_warm_up_changes_the_result():
    with_it, without = (fit(dataclasses.replace(CONFIG, kl_warmup=w))[1] for w in (4, 0))
    assert with_it.history[0]["kl"] > without.history[0]["kl"] + 1e-4

# --- which epoch -----------------------------------------------------------------------------------------------------------------------------

def test_best_epoch_has_the_highest_validation_bound_and_its_weights_are_returned(monkeypatch):
    import gpvae.train as module
    wanted, snapshots = iter([-9., -7., -5., -6., -8.]), []
    original = module.validation_bound
    def bound(model, *args):
        snapshots.append(weights(model).clone())
        return original(model, *args) | {"elbo": next(wanted)}
    monkeypatch.setattr(module, "validation_bound", bound)
    model, trainer = fit(dataclasses.replace(CONFIG, epochs=5))
    assert trainer.best_epoch == 2 and len(trainer.history) == 5
    assert torch.equal(weights(model), snapshots[2]) and not torch.equal(snapshots[2], snapshots[4])

def test_reported_bound_is_that_of_the_returned_weights():
    model, trainer = fit(dataclasses.replace(CONFIG, epochs=12, lr=0.1))
    elbos = [h["valid_elbo"] for h in trainer.history]
    assert elbos[trainer.best_epoch] == max(elbos) and elbos[-1] < max(elbos) # so that the choice matters
    assert validation_bound(model, images(40, seed=1), "static")["elbo"] == max(elbos)

@pytest.mark.parametrize("patience, expected", [(1, 4), (2, 5), (3, 8), (None, 8)])
def test_patience(monkeypatch, patience, expected):
    import gpvae.train as module
    wanted = iter([-9., -7., -5., -6., -6., -4., -8., -8.])
    original = module.validation_bound
    monkeypatch.setattr(module, "validation_bound", lambda *args: original(*args) | {"elbo": next(wanted)})
    _, trainer = fit(dataclasses.replace(CONFIG, epochs=8, patience=patience))
    assert len(trainer.history) == expected

def test_validation_uses_one_noise_and_leaves_the_mode_alone():
    model, x = small().train(), images(40)
    a = validation_bound(model, x, "static")
    torch.manual_seed(5)
    assert validation_bound(model, x, "static") == a and model.training
    assert validation_bound(model, x, "static", seed=1) != a
    assert not torch.is_inference(next(model.parameters()))

def test_validation_is_the_bound_in_the_test_time_mode():
    encoder = gp_encoder(mode="mean")
    model, x = bernoulli_model(encoder).float(), images(40)
    many = torch.tensor([validation_bound(model, x, "static", seed=s)["elbo"] for s in range(100)])
    with torch.no_grad(): exact = model.eval().elbo(to_float(x, "static"), 2000, seeded()).mean()
    assert abs(many.mean() - exact) < 4 * many.std() / 10 + 0.02
    single = validation_bound(model, x, "static", batch_size=7)["elbo"]
    assert abs(single - exact) < 6 * many.std()

def test_active_units():
    means = torch.stack([torch.randn(500, generator=seeded()) * s for s in (1., 0.2, 0.05, 0.)], 1) + 3
    assert active_units(means) == 2

# --- what is random ---------------------------------------------------------------------------------------------------------------------------

def test_seeds():
    (a, ta), (b, tb), (c, tc) = fit(seed=0), fit(seed=0), fit(seed=1)
    assert torch.equal(weights(a), weights(b)) and history(ta) == history(tb)
    assert not torch.equal(weights(a), weights(c)) and history(ta) != history(tc)

def test_stochastic_pixels_are_drawn_anew_and_seeded(monkeypatch):
    calls = spy(monkeypatch)
    grey = torch.full((32, *SHAPE), 128, dtype=torch.uint8)
    for seed in (0, 0, 1): fit(dataclasses.replace(CONFIG, epochs=2), x=grey, binarisation="stochastic", seed=seed)
    epochs = torch.stack([c["x"] for c in calls]).reshape(3, 2, -1)
    assert set(epochs.unique().tolist()) == {0., 1.} and 0.4 < epochs.mean() < 0.6
    assert torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0, 0], epochs[0, 1])

def test_order_and_noise_differ_between_epochs_of_all_seeds():
    from gpvae.train import epoch_seed
    assert len({epoch_seed(s, e) for s in range(20) for e in range(0, 3000, 7)}) == 20 * len(range(0, 3000, 7))

def test_global_randomness_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = small(); torch.set_rng_state(before)
    train(model, images(65), images(40, seed=1), "static", CONFIG, bar=False)
    assert torch.equal(torch.get_rng_state(), before)
    evaluate(model, images(20), 3)
    assert torch.equal(torch.get_rng_state(), before)

@pytest.mark.parametrize("shown", [True, False])
def test_progress(capsys, shown):
    train(small(), images(65), images(40, seed=1), "static", CONFIG, bar=shown, label="small model")
    out = capsys.readouterr()
    assert out.out == ""
    assert all(word in out.err for word in ("small model", "img/s", "bound=", "kl=", "active=")) if shown else out.err == ""

def test_training_helps():
    _, trainer = fit(dataclasses.replace(CONFIG, epochs=8), n=800)
    assert trainer.history[trainer.best_epoch]["valid_elbo"] > trainer.history[0]["valid_elbo"] + 0.5

# --- when it goes wrong -------------------------------------------------------------------------------------------------------------------------

def poisoned(model, term, after):
    "Let one term of the bound become NaN after so many steps."
    original, steps = model.terms, []
    def terms(x, *args):
        t = original(x, *args)
        if model.training: steps.append(1)
        return t._replace(**{term: t._asdict()[term] * math.nan}) if len(steps) > after else t
    object.__setattr__(model, "terms", terms)
    return model

@pytest.mark.parametrize("term, name", [("log_px_z", r"log p\(x\|z\)"), ("kl", r"KL\(q\(z\|x\)")])
def test_nan_stops_naming_step_and_term_and_keeps_the_last_good_checkpoint(tmp_path, term, name):
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(NonFinite, match=rf"step 13: {name}.* is nan"): fit(model=poisoned(small(), term, after=13), path=path) # of 20 steps, 5 an epoch
    tensors, progress = load_checkpoint(path)
    assert len(progress["history"]) == 2 and all(t.isfinite().all() for t in tensors.values())
    model, trainer = fit(path=path) # what it was kept for
    assert torch.equal(weights(model), weights(fit()[0])) and len(trainer.history) == 4

def test_a_huge_step_size_stops():
    with pytest.raises(NonFinite, match=r"step \d+: "): fit(dataclasses.replace(CONFIG, lr=1e30), n=65)

@pytest.mark.parametrize("n", [16, 65])
def test_a_huge_step_size_leaves_no_bad_checkpoint(tmp_path, n):
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(NonFinite): fit(dataclasses.replace(CONFIG, lr=1e30), n=n, path=path) # 16: one step an epoch
    if path.exists():
        progress = load_checkpoint(path)[1]
        assert all(math.isfinite(h["valid_elbo"]) for h in progress["history"])

# --- checkpoints in one process ----------------------------------------------------------------------------------------------------------------------

def stopped_and_resumed(path, after, config=CONFIG):
    "Train for some epochs, then go on in a new trainer from the checkpoint."
    fit(dataclasses.replace(config, epochs=after), path=path, key="a")
    return fit(config, model=small(seed=7), path=path, key="a")

@pytest.mark.parametrize("after", [1, 3])
def test_resumed_training_ends_with_the_same_bits(tmp_path, after):
    whole, trainer = fit()
    resumed, again = stopped_and_resumed(tmp_path / "c.safetensors", after)
    assert torch.equal(weights(whole), weights(resumed))
    assert history(trainer) == history(again)
    for k, v in trainer.optimizer.state_dict()["state"].items():
        for name, value in v.items(): assert torch.equal(value, again.optimizer.state_dict()["state"][k][name])

def test_checkpoint_holds_the_moments_of_the_optimiser(tmp_path):
    path = tmp_path / "c.safetensors"
    _, trainer = fit(path=path, key="a")
    other = Trainer(small(seed=7), CONFIG, path, "a")
    other.resume("cpu")
    state, expected = (t.optimizer.state_dict()["state"] for t in (other, trainer))
    assert len(state) == len(expected) == len(list(small().parameters())) and state[0]["step"] == 20
    for i in expected:
        for name in ("step", "exp_avg", "exp_avg_sq"): assert torch.equal(state[i][name], expected[i][name])

def test_checkpoints_do_not_change_the_result(tmp_path):
    with_it, without = fit(path=tmp_path / "c.safetensors")[0], fit()[0]
    assert torch.equal(weights(with_it), weights(without))
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]

def test_a_finished_training_is_not_repeated(tmp_path, monkeypatch):
    whole, trainer = fit(path=tmp_path / "c.safetensors")
    calls = spy(monkeypatch)
    again, second = fit(model=small(seed=7), path=tmp_path / "c.safetensors")
    assert not calls and torch.equal(weights(whole), weights(again)) and second.history == trainer.history

def test_weight_decay_shrinks_the_layers_and_nothing_else():
    "With gradients of zero a step is the decay alone; random weights have a prior instead."
    model = bernoulli_model(gp_encoder())
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    adam(model, TrainConfig(lr=0.1, weight_decay=0.5)).step()
    layers = {k for k in before if k.endswith(".weight")}
    assert {"encoder.b.weight", "decoder.0.weight", "encoder.trunk.1.weight"} <= layers and "encoder.W.mean" not in layers
    for name, p in model.named_parameters(): torch.testing.assert_close(p.detach(), before[name] * (0.95 if name in layers else 1.), rtol=1e-12, atol=0)
