"The training loop: what a step does, which epoch is kept, what is random and what is not."

import dataclasses
import math
import multiprocessing
import threading
import time

import pytest
import torch
from torch import nn

from gpvae.checks import InputError
from gpvae.evaluation.iwae import evaluate
from gpvae.files import write_tensors
from gpvae.likelihoods import Bernoulli, Gaussian
from gpvae.networks import mlp_decoder, mlp_trunk, with_precision
from gpvae.posteriors import gaussian_kl
from gpvae.pixels import to_float
from gpvae.training import (NonFinite, Trainer, active_units, load_checkpoint, optimizer_tensors, refit,
                            restore_optimizer, train, validation_bound)
from gpvae.train_step import TrainConfig, adam, train_step
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.vae import VAE
from toys import bernoulli_model, binary_images, gp_encoder, seeded

pytestmark = pytest.mark.filterwarnings("ignore:.*units never")  # eight units are soon dead
SHAPE = (1, 4, 4)
CONFIG = TrainConfig(epochs=4, batch_size=16, lr=1e-2, lr_warmup=0, kl_warmup=0, checkpoint_seconds=0.0)

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
    trainer = train(model, images(n) if x is None else x, images(40, seed=1), binarisation,
                    dataclasses.replace(config, seed=seed), path, bar=False, **kwargs)
    return model, trainer

def history(trainer):
    return [{k: v for k, v in h.items() if k != "seconds"} for h in trainer.history]

def weights(model):
    return torch.cat([v.flatten() for v in model.state_dict().values()])

# --- one step -------------------------------------------------------------------------------------

class Recorder(torch.optim.SGD):
    "An optimiser that keeps the gradients it is given, and moves nothing."

    def step(self):
        self.seen = [p.grad.clone() for g in self.param_groups for p in g["params"]]

def gradients(model, x, beta=1.0, config=CONFIG, n_train=100):
    "The gradients that one step hands to the optimiser, and the recorded terms."
    optimizer = Recorder([p for p in model.parameters() if p.requires_grad], 0.0)
    torch.manual_seed(0)
    terms = train_step(model, optimizer, x, beta, n_train, config)
    return optimizer.seen, terms

def test_step_is_the_gradient_of_the_objective():
    model, x = bernoulli_model(gp_encoder(temperature=3.0)).train(), binary_images(6)
    seen, terms = gradients(model, x, beta=0.4, config=dataclasses.replace(CONFIG, max_norm=1e9))
    torch.manual_seed(0)
    q = model.posterior(x)
    z, _ = q.rsample_and_log_prob(1)
    log_px_z = (x.flatten(1) * model.decoder(z) - nn.functional.softplus(model.decoder(z))).sum(-1).mean()
    kl = gaussian_kl(q.mu, q.log_sigma).mean()
    weight_kl = (model.encoder.W.kl() + model.encoder.U.kl()) / 300
    expected = torch.autograd.grad(-(log_px_z - 0.4 * kl - weight_kl),
                                   [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    for a, b in zip(seen, expected, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(terms[:3].double(), torch.stack([log_px_z, kl, weight_kl]).detach().double())

def test_gradient_is_clipped_and_its_norm_is_recorded():
    model, x = bernoulli_model(gp_encoder()).train(), binary_images(6)
    norm = lambda grads: torch.cat([g.flatten() for g in grads]).norm()
    free, terms = gradients(model, x, config=dataclasses.replace(CONFIG, max_norm=1e9))
    clipped, again = gradients(model, x, config=dataclasses.replace(CONFIG, max_norm=0.5))
    assert norm(free) > 2
    torch.testing.assert_close(terms[3], norm(free))
    torch.testing.assert_close(again[3], norm(free))
    torch.testing.assert_close(norm(clipped), torch.tensor(0.5, dtype=torch.float64), rtol=1e-4, atol=0)
    for a, b in zip(free, clipped):
        torch.testing.assert_close(a * (0.5 / norm(free)), b, rtol=1e-4, atol=1e-12)

@pytest.mark.parametrize("schedule, expected", [
    ("milestones", [0.25, 0.5, 0.75, 1.0, 0.1, 0.1, 0.1, 0.1]),
    ("linear", [0.25 * 8 / 8, 0.5 * 7 / 8, 0.75 * 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
    ("cosine",
     [w * (1 + math.cos(math.pi * i / 8)) / 2 for i, w in enumerate([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])]),
])
def test_the_step_size_rises_over_steps_and_falls_by_its_schedule(monkeypatch, schedule, expected):
    "Two epochs of four steps; the warm-up counts steps, not epochs."
    calls = spy(monkeypatch)
    milestones = (1,) if schedule == "milestones" else ()
    config = dataclasses.replace(CONFIG, epochs=2, lr_warmup=4, schedule=schedule, milestones=milestones,
                                 lr=1.0, lr_factor=0.1)
    fit(config, n=64)
    assert [c["lr"] for c in calls] == pytest.approx(expected)

def spy(monkeypatch):
    "Record what every step of the loop is given."
    import gpvae.stepper as module

    original, calls = module.train_step, []

    def step(model, optimizer, x, beta, n_train, config):
        calls.append(dict(x=x.clone(), beta=beta, n_train=n_train, lr=optimizer.param_groups[0]["lr"],
                          training=model.training, noise=model.encoder.noise_scale))
        return original(model, optimizer, x, beta, n_train, config)

    monkeypatch.setattr(module, "train_step", step)
    return calls

def test_the_loop_follows_the_schedules(monkeypatch):
    calls = spy(monkeypatch)
    fit(TrainConfig(epochs=4, batch_size=16, lr_warmup=0, kl_warmup=2, milestones=(1, 3), lr=1e-2,
                    lr_factor=0.5), n=65)
    assert [len(c["x"]) for c in calls[:5]] == [16, 16, 16, 16, 1]  # the last batch of one image counts
    assert len(calls) == 20 and all(c["n_train"] == 65 and c["training"] for c in calls)
    assert [c["lr"] for c in calls[::5]] == pytest.approx([1e-2, 5e-3, 5e-3, 2.5e-3])
    assert [c["beta"] for c in calls] == pytest.approx([min(1, (i + 1) / 10) for i in range(20)])

@pytest.mark.parametrize("noise_warmup, expected", [(0, [1.0] * 10), (2, [(i + 1) / 10 for i in range(10)])])
def test_the_loop_warms_the_randomness_up(monkeypatch, noise_warmup, expected):
    calls = spy(monkeypatch)
    fit(dataclasses.replace(CONFIG, epochs=2, noise_warmup=noise_warmup),
        model=bernoulli_model(gp_encoder()).float())
    assert [c["noise"] for c in calls] == pytest.approx(expected)

def test_randomness_is_scaled():
    "Scale 0 is the mean; the scale multiplies the standard deviation of f and g."
    r = gp_encoder().functions(binary_images(3))
    none, half, whole = (r.draw(seeded(), scale) for scale in (0.0, 0.5, 1.0))
    torch.testing.assert_close(none.mu, r.f_mean)
    torch.testing.assert_close(none.log_sigma, r.g_mean)
    torch.testing.assert_close(2 * (half.mu - none.mu), whole.mu - none.mu)
    torch.testing.assert_close(2 * (half.log_sigma - none.log_sigma), whole.log_sigma - none.log_sigma)

def test_each_epoch_sees_every_image_once_in_a_new_order(monkeypatch):
    calls = spy(monkeypatch)
    x = (torch.arange(65).reshape(-1, 1, 1, 1).expand(-1, *SHAPE)).byte().contiguous()
    fit(dataclasses.replace(CONFIG, epochs=2), x=x, binarisation="none")
    order = torch.cat([c["x"][:, 0, 0, 0] for c in calls]).mul(255).round().int().reshape(2, 65)
    assert torch.equal(order.sort(1).values, torch.arange(65, dtype=torch.int32).expand(2, -1))
    assert not torch.equal(order[0], order[1])
    assert not torch.equal(order[0], torch.arange(65, dtype=torch.int32))

# --- which epoch ----------------------------------------------------------------------------------

def test_best_epoch_has_the_highest_validation_bound_and_its_weights_are_returned(monkeypatch):
    import gpvae.training as module

    wanted, snapshots = iter([-9.0, -7.0, -5.0, -6.0, -8.0]), []
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
    assert elbos[trainer.best_epoch] == max(elbos) and elbos[-1] < max(elbos)  # so that the choice matters
    assert validation_bound(model, images(40, seed=1), "static")["elbo"] == max(elbos)

@pytest.mark.parametrize("patience, expected", [(1, 4), (2, 5), (3, 8), (None, 8)])
def test_patience(monkeypatch, patience, expected):
    import gpvae.training as module

    wanted = iter([-9.0, -7.0, -5.0, -6.0, -6.0, -4.0, -8.0, -8.0])
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
    with torch.no_grad():
        exact = model.eval().elbo(to_float(x, "static"), 2000, seeded()).mean()
    assert abs(many.mean() - exact) < 4 * many.std() / 10 + 0.02
    single = validation_bound(model, x, "static", batch_size=7)["elbo"]
    assert abs(single - exact) < 6 * many.std()

def test_active_units():
    means = torch.stack([torch.randn(500, generator=seeded()) * s for s in (1.0, 0.2, 0.05, 0.0)], 1) + 3
    assert active_units(means) == 2

# --- what is random -------------------------------------------------------------------------------

def test_seeds():
    (a, ta), (b, tb), (c, tc) = fit(seed=0), fit(seed=0), fit(seed=1)
    assert torch.equal(weights(a), weights(b)) and history(ta) == history(tb)
    assert not torch.equal(weights(a), weights(c)) and history(ta) != history(tc)

def test_stochastic_pixels_are_drawn_anew_and_seeded(monkeypatch):
    calls = spy(monkeypatch)
    grey = torch.full((32, *SHAPE), 128, dtype=torch.uint8)
    for seed in (0, 0, 1):
        fit(dataclasses.replace(CONFIG, epochs=2), x=grey, binarisation="stochastic", seed=seed)
    epochs = torch.stack([c["x"] for c in calls]).reshape(3, 2, -1)
    assert set(epochs.unique().tolist()) == {0.0, 1.0} and 0.4 < epochs.mean() < 0.6
    assert torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0, 0], epochs[0, 1])

def test_order_and_noise_differ_between_epochs_of_all_seeds():
    from gpvae.training import epoch_seed

    assert len({epoch_seed(s, e) for s in range(20) for e in range(0, 3000, 7)}) == 20 * len(
        range(0, 3000, 7)
    )

def test_global_randomness_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = small()
    torch.set_rng_state(before)
    train(model, images(65), images(40, seed=1), "static", CONFIG, bar=False)
    assert torch.equal(torch.get_rng_state(), before)
    evaluate(model, images(20), 3)
    assert torch.equal(torch.get_rng_state(), before)

@pytest.mark.parametrize("shown", [True, False])
def test_progress(capsys, shown):
    train(small(), images(65), images(40, seed=1), "static", CONFIG, bar=shown, label="small model")
    out = capsys.readouterr()
    assert out.out == ""
    assert (all(word in out.err for word in ("small model", "img/s", "bound=", "kl=", "active=")) if shown
            else out.err == "")

def test_training_helps():
    _, trainer = fit(dataclasses.replace(CONFIG, epochs=8), n=800)
    assert trainer.history[trainer.best_epoch]["valid_elbo"] > trainer.history[0]["valid_elbo"] + 0.5

# --- when it goes wrong ---------------------------------------------------------------------------

def poison(monkeypatch, term, after):
    "Let one term of the bound become NaN after so many steps."
    original, steps = VAE.terms, []

    def terms(self, x, *args):
        t = original(self, x, *args)
        if self.training:
            steps.append(1)
        return t._replace(**{term: t._asdict()[term] * math.nan}) if len(steps) > after else t

    monkeypatch.setattr(VAE, "terms", terms)

@pytest.mark.parametrize("term, name", [("log_px_z", r"log p\(x\|z\)"), ("kl", r"KL\(q\(z\|x\)")])
def test_nan_stops_naming_step_and_term_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, term, name):
    path = tmp_path / "checkpoint.safetensors"
    with monkeypatch.context() as m:
        poison(m, term, after=13)  # of 20 steps, 5 an epoch
        with pytest.raises(NonFinite, match=rf"step 13: {name}.* is nan"):
            fit(path=path)
    tensors, progress = load_checkpoint(path)
    assert len(progress["history"]) == 2 and all(t.isfinite().all() for t in tensors.values())
    model, trainer = fit(path=path)  # what it was kept for
    assert torch.equal(weights(model), weights(fit()[0])) and len(trainer.history) == 4

@pytest.mark.parametrize("n", [16, 65])
def test_a_huge_step_size_leaves_no_bad_checkpoint(tmp_path, n):
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(NonFinite):
        fit(dataclasses.replace(CONFIG, lr=1e30), n=n, path=path)  # 16: one step an epoch
    if path.exists():
        progress = load_checkpoint(path)[1]
        assert all(math.isfinite(h["valid_elbo"]) for h in progress["history"])

# --- checkpoints in one process -------------------------------------------------------------------

def stopped_and_resumed(path, after, config=CONFIG):
    "Train for some epochs, then go on in a new trainer from the checkpoint."
    fit(dataclasses.replace(config, epochs=after), path=path, key="a")
    return fit(config, path=path, key="a")

@pytest.mark.parametrize("after", [1, 3])
def test_resumed_training_ends_with_the_same_bits(tmp_path, after):
    whole, trainer = fit()
    resumed, again = stopped_and_resumed(tmp_path / "c.safetensors", after)
    assert torch.equal(weights(whole), weights(resumed))
    assert history(trainer) == history(again)
    for k, v in trainer.optimizer.state_dict()["state"].items():
        for name, value in v.items():
            assert torch.equal(value, again.optimizer.state_dict()["state"][k][name])

def test_checkpoints_do_not_change_the_result(tmp_path):
    with_it, without = fit(path=tmp_path / "c.safetensors")[0], fit()[0]
    assert torch.equal(weights(with_it), weights(without))
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]

def test_a_finished_training_is_not_repeated(tmp_path, monkeypatch):
    whole, trainer = fit(path=tmp_path / "c.safetensors")
    calls = spy(monkeypatch)
    again, second = fit(path=tmp_path / "c.safetensors")
    assert not calls and torch.equal(weights(whole), weights(again)) and second.history == trainer.history

# --- checkpoints answer their own question --------------------------------------------------------

def other_model(**changes):
    "The small model, built otherwise."
    torch.manual_seed(0)
    trunk, decoder = mlp_trunk(SHAPE, (8,)), mlp_decoder(2, SHAPE, (8,))
    if changes.get("activation"):
        decoder[1] = changes["activation"]
    model = VAE(AmortizedEncoder(trunk, 8, 2, dropout=changes.get("dropout", 0.0)), decoder,
                changes.get("likelihood", Bernoulli()))
    if changes.get("frozen"):
        model.decoder.requires_grad_(False)
    return model

def flipped(x):
    x = x.clone()
    x[-1, 0, 0, 0] ^= 255
    return x

QUESTIONS = {
    "lr": (dict(config=dict(lr=2e-2)), "lr is 0.02, not 0.01"),
    "warm-up": (dict(config=dict(lr_warmup=7)), "lr_warmup is 7, not 0"),
    "decay": (dict(config=dict(weight_decay=0.3)), "weight_decay is 0.3, not 0.0"),
    "schedule": (dict(config=dict(schedule="linear")), "schedule is linear, not milestones"),
    "milestones": (dict(config=dict(milestones=(2,))), r"milestones is \(2,\), not \[\]"),
    "norm": (dict(config=dict(max_norm=None)), "max_norm is None, not 100.0"),
    "batch": (dict(config=dict(batch_size=8)), "batch_size is 8, not 16"),
    "two": (dict(config=dict(lr=2e-2, kl_warmup=1)), "lr is 0.02, not 0.01; kl_warmup is 1, not 0"),
    "seed": (dict(seed=1), "seed is 1, not 0"),
    "pixel": (dict(x=flipped(images(65))), "other training images"),
    "fewer images": (dict(n=64), "other training images"),
    "pixels made binary": (dict(binarisation="stochastic"), "binarisation is 'stochastic', not 'static'"),
    "key": (dict(key="b"), "key is 'b', not ''"),
    "weights": (dict(model=small(7)), "other starting weights"),
    "activation": (dict(model=other_model(activation=nn.Tanh())), "other parts of the model"),
    "option of a layer": (dict(model=other_model(activation=nn.LeakyReLU(0.2))), "other parts of the model"),
    "dropout": (dict(model=other_model(dropout=0.5)), "other parts of the model"),
    "refit": (dict(model=other_model(frozen=True)), "other parameters"),
}

@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    "A finished checkpoint, and its weights."
    path = tmp_path_factory.mktemp("kept") / "c.safetensors"
    return path, weights(fit(path=path)[0])

@pytest.mark.parametrize("question", QUESTIONS)
def test_a_checkpoint_refuses_another_question_in_one_line(kept, question):
    "It names what differs; neither the file nor the model is touched."
    (changes, words), (path, right) = QUESTIONS[question], kept
    changes = dict(changes)
    model, before = changes.pop("model", None) or small(), path.read_bytes()
    start = weights(model)
    with pytest.raises(InputError, match=words) as e:
        fit(dataclasses.replace(CONFIG, **changes.pop("config", {})), path=path, model=model, **changes)
    assert "\n" not in str(e.value) and str(path) in str(e.value)
    assert path.read_bytes() == before and torch.equal(weights(model), start)
    assert torch.equal(weights(fit(path=path)[0]), right)

def test_other_validation_images_are_another_question(kept):
    with pytest.raises(InputError, match="other validation images"):
        train(small(), images(65), images(40, seed=2), "static", CONFIG, kept[0], bar=False)

def test_a_number_of_a_module_is_part_of_the_question(tmp_path):
    path, model = tmp_path / "c.safetensors", other_model(likelihood=Gaussian(16))
    fit(path=path, model=model, binarisation="none")
    again = other_model(likelihood=Gaussian(16))
    again.likelihood.min_scale = 0.05
    with pytest.raises(InputError, match="other parts of the model"):
        fit(path=path, model=again, binarisation="none")

@pytest.mark.parametrize("change, ends", [(dict(epochs=2), 2), (dict(patience=1), 2)])
def test_less_than_a_checkpoint_holds_is_refused(tmp_path, monkeypatch, change, ends):
    import gpvae.training as module

    wanted, original = iter([-5.0, -6.0, -7.0, -8.0]), module.validation_bound
    monkeypatch.setattr(module, "validation_bound", lambda *args: original(*args) | {"elbo": next(wanted)})
    fit(path=tmp_path / "c.safetensors")
    with pytest.raises(InputError, match=f"holds 4 epochs, and this training would have ended after {ends}"):
        fit(dataclasses.replace(CONFIG, **change), path=tmp_path / "c.safetensors")

@pytest.mark.parametrize("first, then", [(dict(epochs=2, patience=50), {}),
                                         (dict(epochs=3), dict(checkpoint_seconds=9.0))])
def test_more_epochs_end_with_the_bits_of_the_whole(tmp_path, first, then):
    path = tmp_path / "c.safetensors"
    fit(dataclasses.replace(CONFIG, **first), path=path)
    assert torch.equal(weights(fit(dataclasses.replace(CONFIG, **then), path=path)[0]), weights(fit()[0]))

@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_more_epochs_of_a_schedule_to_zero_are_another_question(tmp_path, schedule):
    config, path = dataclasses.replace(CONFIG, schedule=schedule, epochs=2), tmp_path / "c.safetensors"
    fit(config, path=path)
    with pytest.raises(InputError, match="epochs is 4, not 2"):
        fit(dataclasses.replace(config, epochs=4), path=path)

def test_the_model_that_train_left_may_ask_again(tmp_path):
    path = tmp_path / "c.safetensors"
    model, _ = fit(dataclasses.replace(CONFIG, epochs=2), path=path)
    again, _ = fit(path=path, model=model)
    assert torch.equal(weights(again), weights(fit()[0]))

def test_a_refit_is_not_the_training_and_not_that_of_another_model(tmp_path):
    "Neither after `train` in the same path nor of a second model, whose decoder stays its own."
    arguments, path, second = ((images(65), images(40, seed=1), "static", CONFIG), tmp_path / "c.safetensors",
                               tmp_path / "r.safetensors")
    model, other = fit(path=path)[0], small(seed=9)
    with pytest.raises(InputError, match="other parameters"):
        refit(model, *arguments, path=path, bar=False)
    refit(model, *arguments, path=second, bar=False)
    before = weights(other)
    with pytest.raises(InputError, match="other starting weights"):
        refit(other, *arguments, path=second, bar=False)
    assert torch.equal(weights(other), before)

def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    write_tensors(path, {"model.w": torch.ones(2)}, {"key": "", "history": [], "seconds": 0.0})
    with pytest.raises(InputError, match="of another version of gpvae: delete it"):
        fit(path=path)

def test_the_optimisers_state_finds_its_parameters_in_other_groups():
    "By name: with weight decay the parameters stand in another order."
    plain, decayed = (Trainer(small(), dataclasses.replace(CONFIG, weight_decay=w)) for w in (0.0, 0.4))
    for i, p in enumerate(plain.model.parameters()):
        p.grad = torch.full_like(p, i + 1.0)
    plain.optimizer.step()
    restore_optimizer(decayed.model, decayed.optimizer, optimizer_tensors(plain.model, plain.optimizer))
    for p, q in zip(plain.model.parameters(), decayed.model.parameters()):
        assert torch.equal(plain.optimizer.state[p]["exp_avg"], decayed.optimizer.state[q]["exp_avg"])

def test_a_killed_training_ends_with_the_same_bits(tmp_path):
    "Killed as soon as there is something to continue from, and again in the middle."
    config, path = dataclasses.replace(CONFIG, epochs=30), tmp_path / "c.safetensors"
    context = multiprocessing.get_context("fork")
    for epochs in (1, 8):
        process = context.Process(target=fit, args=(config,), kwargs=dict(path=path))
        process.start()
        while process.is_alive() and not (
            path.exists() and len(load_checkpoint(path)[1]["history"]) >= epochs
        ):
            time.sleep(0.01)
        process.kill()
        process.join()
    assert 8 <= len(load_checkpoint(path)[1]["history"]) < 30
    assert torch.equal(weights(fit(config, path=path)[0]), weights(fit(config)[0]))

# --- threads, types, what is looked at ------------------------------------------------------------

def test_trainings_in_threads_are_those_of_a_process_alone():
    "Each epoch has the global generator for itself, and afterwards it is as it was."
    expected, found = [weights(fit(seed=s)[0]) for s in range(3)], {}
    models = [small() for _ in range(3)]
    torch.manual_seed(5)
    before = torch.get_rng_state()

    def work(s):
        train(models[s], images(65), images(40, seed=1), "static", dataclasses.replace(CONFIG, seed=s),
              bar=False)
        found[s] = weights(models[s])

    threads = [threading.Thread(target=work, args=(s,)) for s in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for s in range(3):
        assert torch.equal(found[s], expected[s])
    assert torch.equal(torch.get_rng_state(), before)

def test_the_precision_of_one_thread_is_not_that_of_another():
    x, inside, go = torch.rand(8, *SHAPE), threading.Event(), threading.Event()
    trunk, found = mlp_trunk(SHAPE, (8,)), []
    expected = trunk(x)

    def work():
        with with_precision("bfloat16"):
            inside.set()
            go.wait(10)
            found.append(trunk(x))

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    here = trunk(x)
    go.set()
    thread.join()
    assert torch.equal(here, expected) and not torch.equal(found[0], expected)

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype):
    for call in (lambda m: fit(model=m), lambda m: validation_bound(m, images(4), "static")):
        with pytest.raises(InputError, match=r"numbers are .*float16: train model.float\(\)"):
            call(small().to(dtype))

@pytest.mark.parametrize("binarisation", ["static", "floats"])
def test_a_model_of_double_precision_trains(binarisation):
    x = images(65) if binarisation == "static" else images(65) / 255
    model = small().double()
    trainer = train(model, x, x[:20], binarisation, CONFIG, bar=False)
    assert weights(model).dtype == torch.float64 and math.isfinite(trainer.history[-1]["valid_elbo"])

def test_nothing_that_learns_is_one_line():
    with pytest.raises(InputError, match="nothing of the model learns"):
        fit(model=small().requires_grad_(False))

def test_a_warm_up_of_the_randomness_ends_with_the_training():
    model = bernoulli_model(gp_encoder()).float()
    fit(dataclasses.replace(CONFIG, epochs=1, noise_warmup=9), model=model)
    assert model.encoder.noise_scale == 1.0

@pytest.mark.parametrize("max_norm, cut", [(None, 0.0), (1e9, 0.0), (1e-6, 1.0)])
def test_the_history_keeps_the_largest_norm_and_the_share_of_cut_steps(max_norm, cut):
    last = fit(dataclasses.replace(CONFIG, max_norm=max_norm))[1].history[-1]
    assert last["cut"] == cut and last["norm_max"] >= last["norm"] > 0

def test_no_norm_is_no_cut():
    assert torch.equal(weights(fit(dataclasses.replace(CONFIG, max_norm=None))[0]),
                       weights(fit(dataclasses.replace(CONFIG, max_norm=1e30))[0]))

def test_weight_decay_shrinks_the_layers_and_nothing_else():
    "With gradients of zero a step is the decay alone; random weights have a prior instead."
    model = bernoulli_model(gp_encoder())
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    adam(model, TrainConfig(lr=0.1, weight_decay=0.5)).step()
    layers = {k for k in before if k.endswith(".weight")}
    assert {"encoder.b.weight", "decoder.0.weight", "encoder.trunk.1.weight"} <= layers
    assert "encoder.W.mean" not in layers
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if name in layers else 1.0), rtol=1e-12,
                                   atol=0)
