"Dreams and refits: whose gradient reaches what, where dreams come from, and that a held decoder is held."
import dataclasses

import pytest
import torch
from torch import nn

from gpvae.checks import InputError
from gpvae.data import gather
from gpvae.dreams import SOURCES, sample_images
from gpvae.vae import frozen
from gpvae.study.config import RunSpec, merge_settings
from gpvae.study.methods import METHODS
from models import build_model
from gpvae.training import refit
from gpvae.train_step import TrainConfig, adam, train_step
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.vae import VAE
from toys import LinearGaussian, bernoulli_model, binary_images, gp_encoder
from test_train import CONFIG, Recorder, fit, images, small

SHARE = 0.75
DREAMING = dataclasses.replace(CONFIG, dreams=SHARE, max_norm=1e9)

def state(module): return torch.cat([v.double().flatten() for v in module.state_dict().values()])

def gradients(model, x, config):
    "The gradients of a step by name, without moving anything."
    optimizer = Recorder([p for p in model.parameters() if p.requires_grad], 0.)
    torch.manual_seed(0)
    train_step(model, optimizer, x, 0.7, 100, config)
    return dict(zip([n for n, p in model.named_parameters() if p.requires_grad], optimizer.seen))

@pytest.fixture
def drawn(monkeypatch):
    "Dreams of one's choice instead of the model's."
    x = binary_images(18, seed=5)
    monkeypatch.setattr("gpvae.train_step.sample_images", lambda model, n, *_: x[:n])
    return x

# --- a step ---------------------------------------------------------------------------------------

def test_gradients_of_dreams_reach_the_encoder_in_their_share(drawn):
    "The decoder learns as without dreams; the encoder follows the mixture of @eq-dreams."
    model, x = bernoulli_model(gp_encoder()).train(), binary_images(6)
    seen = gradients(model, x, DREAMING)
    torch.manual_seed(0)
    real = model.terms(x).elbo(0.7).mean() # in the order in which the step draws its noise
    dreamed = model.terms(drawn).elbo(0.7).mean()
    price = model.weight_kl_per_image(100)
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        of = lambda value: torch.autograd.grad(value, p, retain_graph=True, allow_unused=True)[0]
        if name.startswith("encoder"):
            parts = ((-(1 - SHARE), real), (-SHARE, dreamed), (1., price))
            expected = sum(w * g for w, v in parts if (g := of(v)) is not None)
        else:
            expected = -of(real)
        torch.testing.assert_close(seen[name], expected, msg=lambda m: f"{name}: {m}")

def test_a_held_decoder_makes_one_batch_of_both(drawn):
    model, x = bernoulli_model(gp_encoder()).train(), binary_images(6)
    with frozen(model.decoder, model.likelihood):
        seen = gradients(model, x, DREAMING)
    torch.manual_seed(0)
    loss = model.weight_kl_per_image(100) - model.terms(torch.cat([x, drawn])).elbo(0.7).mean()
    assert set(seen) == {
        n for n, p in model.named_parameters() if n.startswith("encoder") and p.requires_grad
    }
    for name, p in model.named_parameters():
        if name in seen:
            torch.testing.assert_close(seen[name], torch.autograd.grad(loss, p, retain_graph=True)[0])

def test_without_dreams_a_step_is_what_it_was():
    "Bit for bit, and no random number is drawn for dreams."
    model, reference, x = small(), small(), gather(images(16), torch.arange(16), "static", None)
    optimizer, other = adam(model, CONFIG), adam(reference, CONFIG)
    for step in range(3):
        torch.manual_seed(step)
        train_step(model, optimizer, x, 0.5, 100, dataclasses.replace(CONFIG, dreams=0.))
        torch.manual_seed(step)
        other.zero_grad()
        (-reference.terms(x).elbo(0.5).mean()).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), CONFIG.max_norm)
        other.step()
        assert torch.equal(state(model), state(reference))

@pytest.mark.parametrize("method", METHODS)
def test_every_method_dreams(method):
    "Each method takes a step with dreams, and one with its decoder held, which changes no bit of it."
    spec = RunSpec(method=method, z_dim=2, likelihood="bernoulli",
                   settings=(("hidden", (8, 8)), ("network", "mlp")))
    model, x = build_model(spec, (1, 4, 4)), gather(images(6), torch.arange(6), "static", None)
    before, decoder = state(model.encoder), state(model.decoder)
    config = dataclasses.replace(CONFIG, dreams=0.5)
    with frozen(model.decoder, model.likelihood):
        assert train_step(model.train(), adam(model, config), x, 1., 100, config).isfinite().all()
        assert torch.equal(state(model.decoder), decoder) and not torch.equal(state(model.encoder), before)
    assert train_step(model, adam(model, config), x, 1., 100, config).isfinite().all()
    assert not torch.equal(state(model.decoder), decoder)

def test_dreams_begin_when_they_are_asked_to():
    late = dataclasses.replace(CONFIG, dreams=0.5, dream_start=2)
    (_, plain), (_, dreaming), (_, soon) = (fit(c)
                                            for c in (CONFIG, late, dataclasses.replace(late, dream_start=1)))
    bounds = lambda trainer: [h["valid_elbo"] for h in trainer.history]
    assert bounds(plain)[:2] == bounds(dreaming)[:2] and bounds(plain)[2] != bounds(dreaming)[2]
    assert bounds(soon)[0] == bounds(plain)[0] and bounds(soon)[1] != bounds(plain)[1]

# --- where dreams come from -----------------------------------------------------------------------

def linear(scale: float):
    "A model of six pixels whose encoder answers with the first two of them, scaled, and next to no width."
    toy = LinearGaussian()
    encoder = AmortizedEncoder(nn.Flatten(), 6, 2).double()
    with torch.no_grad():
        for p in encoder.parameters():
            p.zero_()
        encoder.b.weight[:, :2] = scale * torch.eye(2)
        encoder.c.bias.fill_(-20.)
    return toy, VAE(encoder, toy.decoder, toy.likelihood)

def test_dreams_from_the_prior_have_the_moments_of_the_model():
    toy, model = linear(1.)
    torch.manual_seed(0)
    x = sample_images(model, 40_000, toy.images(3), "prior").flatten(1)
    assert (x.mean(0) - toy.a).abs().max() < 0.05
    cov = toy.A @ toy.A.T + toy.s**2 * torch.eye(6)
    sizes = cov.diagonal().sqrt()
    assert ((x.T.cov() - cov) / torch.outer(sizes, sizes)).abs().max() < 0.03 # four standard errors

def test_dreams_from_posteriors_are_of_their_images_in_turn():
    toy, model = linear(100.)
    x = toy.images(3)
    torch.manual_seed(0)
    off = sample_images(model, 7, x, "posterior").flatten(1) - 100 * x.flatten(1)[[0, 1, 2, 0, 1, 2, 0],
                                                                                  :2] @ toy.A.T - toy.a
    assert off.abs().max() < 6 * toy.s # noise of the pixels, beside means of hundreds

def test_both_take_half_from_each():
    toy, model = linear(1e4)
    torch.manual_seed(0)
    far = sample_images(model, 9, toy.images(3), "both").flatten(1).norm(dim=1) > 1000
    assert far.tolist() == [False] * 4 + [True] * 5

@pytest.mark.parametrize("source", SOURCES)
def test_dreaming_leaves_no_trace(source):
    model = bernoulli_model(gp_encoder()).train()
    before = state(model)
    x = sample_images(model, 5, binary_images(3), source)
    assert x.shape == (5, *binary_images(3).shape[1:]) and not x.requires_grad and not x.is_inference()
    assert torch.equal(state(model), before) and all(m.training for m in model.modules())

def test_unknown_sources_and_shares_are_refused():
    with pytest.raises(InputError, match="dream_source.*noise.*prior, posterior, both"):
        TrainConfig(dream_source="noise")
    with pytest.raises(InputError, match="dreams is 1.*below 1"):
        TrainConfig(dreams=1.)
    with pytest.raises(InputError, match="dreams is -0.5"):
        TrainConfig(dreams=-0.5)
    with pytest.raises(InputError, match="dreams is 1.0"):
        merge_settings(RunSpec(settings=(("dreams", 1.),)))

def test_held_gives_back_what_it_found():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()).train()
    model[0].bias.requires_grad_(False)
    model[2].eval()
    before = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    with pytest.raises(RuntimeError), frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(m.training for m in model.modules())
        raise RuntimeError
    assert before == ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()])

# --- refits ---------------------------------------------------------------------------------------

def with_batch_norm():
    "A model whose decoder has running moments."
    model = small()
    model.decoder = nn.Sequential(nn.Flatten(0, -2), nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 16),
                                  nn.Unflatten(0, (1, -1)))
    return model

@pytest.mark.parametrize("build", [small, with_batch_norm])
def test_refit_leaves_the_decoder_as_it_is(build):
    model = build()
    decoder, encoder = state(model.decoder), state(model.encoder)
    trainer = refit(model, images(32), images(40, seed=1), "static", dataclasses.replace(CONFIG, dreams=0.5),
                    bar=False)
    assert torch.equal(state(model.decoder), decoder) and not torch.equal(state(model.encoder), encoder)
    assert len(trainer.history) == CONFIG.epochs and all(p.requires_grad for p in model.parameters())

def test_refit_continues_with_the_same_bits(tmp_path):
    config, path = dataclasses.replace(CONFIG, dreams=0.5), tmp_path / "checkpoint.safetensors"
    call = lambda epochs, path=None: refit(small(), images(32), images(40, seed=1), "static",
                                           dataclasses.replace(config, epochs=epochs), path=path, bar=False)
    call(2, path)
    resumed, whole = call(4, path), call(4)
    assert torch.equal(state(resumed.model), state(whole.model))
