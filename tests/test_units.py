"Dead and saturated units: counted over images, said in words."

import dataclasses
import warnings

import pytest
import torch
from torch import nn

from gpvae.likelihoods import Bernoulli
from gpvae.networks import ConvDecoder, conv_trunk
from gpvae.training import train
from gpvae.units import UnitShares, dead_units, units_message
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.vae import VAE
from test_train import CONFIG, images, other_model, small
from toys import seeded

SHAPE = (1, 4, 4)

def pixels(n=50, shape=SHAPE):
    return torch.rand(n, *shape, generator=seeded())

def kill(layer, units, value=-1e3):
    with torch.no_grad():
        layer.bias[units] = value
        layer.weight[units] = 0.0

@pytest.mark.parametrize("activation, value, expected",
                         [(nn.ReLU(), -5.0, (0.5, 0.0)), (nn.ReLU(), 5.0, (0.0, 0.5)),
                          (nn.GELU(), -9.0, (0.5, 0.0)), (nn.SiLU(), -20.0, (0.5, 0.0)),
                          (nn.Tanh(), 9.0, (0.0, 0.5)), (nn.Tanh(), -9.0, (0.0, 0.5)),
                          (nn.Sigmoid(), -20.0, (0.5, 0.0)), (nn.LeakyReLU(), -9.0, (0.0, 0.5))])
def test_units_of_every_kind(activation, value, expected):
    "Four of the decoder's eight units do not depend on the images."
    model = other_model(activation=activation)
    with torch.no_grad():
        model.decoder[0].bias.fill_(3.0 if isinstance(activation, nn.ReLU) else 0.0)
    kill(model.decoder[0], slice(0, 4), value)
    found = dead_units(model, pixels())
    assert (found.decoder_dead, found.decoder_saturated) == expected

def test_a_unit_that_fires_once_is_alive():
    model, x = small(), torch.zeros(51, *SHAPE)
    with torch.no_grad():
        model.encoder.trunk[1].weight.fill_(1.0)
        model.encoder.trunk[1].bias.fill_(-1.0)
    assert dead_units(model, x).encoder_dead == 1
    x[-1] = 1.0
    for batch_size in (7, 500):
        assert dead_units(model, x, batch_size).encoder_dead == 0

def test_a_unit_of_a_convolution_is_a_channel():
    trunk, decoder = conv_trunk((1, 8, 8), 12, 4), ConvDecoder(2, (1, 8, 8), 12, 4)
    model = VAE(AmortizedEncoder(trunk, 12, 2), decoder, Bernoulli())
    before = dead_units(model, pixels(shape=(1, 8, 8)))
    kill(
        next(m for m in trunk if isinstance(m, nn.Conv2d)), slice(None)
    )  # all 4 channels, and what they feed never changes
    found = dead_units(model, pixels(shape=(1, 8, 8)))
    assert (found.encoder_dead + found.encoder_saturated == 1 and found.encoder_dead >= 4 / 16
            and found.decoder_dead == before.decoder_dead)

def test_looking_changes_nothing():
    model = small().train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert dead_units(model, pixels()) == dead_units(model, pixels())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

def test_networks_without_modules_of_activations_have_no_number():
    model = VAE(AmortizedEncoder(nn.Flatten(), 16, 2), nn.Linear(2, 16), Bernoulli())
    assert all(share != share for share in dead_units(model, pixels()))

@pytest.mark.parametrize("units, part, lr_warmup, words", [
    (UnitShares(0.05, 0.0, 0.46, 0.0), "decoder", 0, "46 % of the decoder's units never fire: use lr_warmup"),
    (UnitShares(0.05, 0.0, 0.46, 0.0), "decoder", 200,
     "46 % of the decoder's units never fire: " "use a longer lr_warmup, a smaller lr or activation='gelu'"),
    (UnitShares(0.05, 0.3, 0.46, 0.0), "encoder", 0,
     "30 % of the encoder's units never change: use lr_warmup"),
    (UnitShares(0.05, 0.0, 0.09, 0.0), "decoder", 0, None),
    (UnitShares(*[float("nan")] * 4), "encoder", 0, None),
])
def test_it_is_said_in_words(units, part, lr_warmup, words):
    assert units_message(units, part, lr_warmup) == words

def test_training_says_it_once_and_keeps_it():
    model = small()
    kill(model.decoder[0], slice(0, 6))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = train(model, images(65), images(40, seed=1), "static",
                        dataclasses.replace(CONFIG, epochs=2), bar=False)
    text = [str(w.message) for w in said if "decoder" in str(w.message)]
    assert (len(text) == 1 and "of the decoder's units never fire: use lr_warmup" in text[0]
            and trainer.units.decoder_dead >= 0.75)
