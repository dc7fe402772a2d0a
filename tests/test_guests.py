"""Models of other people under `adapt`: what was refused or silently wrong, a case each; conventions and
refusals in general are in `test_adapt`."""
import copy
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Beta

from gpvae.adapters import adapt
from gpvae.checks import InputError
from gpvae.encoders.gp import GPEncoder
from gpvae.evaluation.iwae import evaluate
from gpvae.likelihoods import Bernoulli, Gaussian, Likelihood
from gpvae.posteriors import DiagonalGaussian
from gpvae.training import TrainConfig, refit, train
from toys import perturb, seeded

SHAPE, Z = (3, 4, 6), 2
D = 72

def images(n=12, shape=SHAPE):
    return 255 * torch.bernoulli(torch.full((n, *shape), 0.4), generator=seeded(1)).to(torch.uint8)

class Net(nn.Module):
    "Encoder and decoder with all parts in one module, called by its two methods."
    def __init__(self, encoded=lambda mu, s: (mu, s), decoded=lambda eta: eta):
        super().__init__()
        self.encoded, self.decoded = encoded, decoded
        self.down, self.mu, self.log_var = nn.Linear(D, 8), nn.Linear(8, Z), nn.Linear(8, Z)
        self.up, self.norm = nn.Sequential(nn.Linear(Z, 8), nn.Tanh(), nn.Dropout(0.5)), nn.BatchNorm1d(8)
        self.weight, self.shift = nn.Parameter(torch.randn(D, 8)), nn.Parameter(torch.zeros(D))
        self.common = nn.Parameter(torch.ones(()))

    def encode(self, x):
        h = torch.tanh(self.down(x.flatten(1))) * self.common
        return self.encoded(self.mu(h), self.log_var(h))

    def decode(self, z):
        eta = nn.functional.linear(self.norm(self.up(z)), self.weight, self.shift)
        return self.decoded(self.common * eta)

def net(scale=0.1, **options):
    torch.manual_seed(0)
    return perturb(Net(**options), scale)

def adapted(v, likelihood=None, **said):
    said = dict(scale="log_var", output="logits" if likelihood is None else None, x_shape=SHAPE) | said
    return adapt(v.encode, v.decode, likelihood or Bernoulli(), Z, **said)

def line(call):
    "Of the refusal."
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)

def warned(call):
    "The result, and the warnings of this package."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call()
    return found, [str(w.message) for w in caught if issubclass(w.category, UserWarning)]

# --- shapes ---------------------------------------------------------------------------------------

SHAPES = { # what a decoder of (3, 4, 6) may return
    "images": ((3, 4, 6), True),
    "rows": ((72,), True),
    "channels last": ((4, 6, 3), False),
    "transposed": ((3, 6, 4), False),
    "other rows": ((12, 6), False),
}

@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_compared_as_shapes(name):
    shape, right = SHAPES[name]
    v = net(decoded=lambda eta: eta.reshape(-1, *shape))
    if right:
        assert evaluate(adapted(v), images(), 5).iwae.isfinite().all()
    else:
        assert re.search(r"it must be \[8, 3, 4, 6\] or \[8, 72\]", line(lambda: adapted(v)))

def test_grey_images_may_lack_their_channel():
    v = net(decoded=lambda eta: eta.reshape(-1, 8, 9))
    model = adapted(v, x_shape=(1, 8, 9))
    expected = adapted(net(), x_shape=(1, 8, 9))
    x = images(shape=(1, 8, 9))
    assert torch.equal(evaluate(model, x, 5).iwae, evaluate(expected, x, 5).iwae)

@pytest.mark.parametrize("likelihood", [None, Gaussian(D)])
def test_images_of_another_shape_are_one_line(likelihood):
    model = adapted(net(), likelihood)
    assert "channels are last" in line(lambda: evaluate(model, images().permute(0, 2, 3, 1), 5))

# --- what is refused, and what is not ---------------------------------------------------------------

LOGITS = { # decoders whose logits all lie between 0 and 1
    "squashed": lambda eta: 0.5 + 0.4 * torch.tanh(eta),
    "a constant": lambda eta: 0.3 + 0 * eta,
}

@pytest.mark.parametrize("name", LOGITS)
def test_logits_between_0_and_1_are_right(name):
    v = net(decoded=LOGITS[name])
    model, messages = warned(lambda: adapted(v))
    assert len(messages) <= 1 and all("if they are, say output='probabilities'" in m for m in messages)
    v.eval()
    other = adapted(net(decoded=lambda eta: torch.sigmoid(LOGITS[name](eta))), output="probabilities")
    torch.testing.assert_close(evaluate(model, images(), 5).iwae, evaluate(other, images(), 5).iwae)

SQUASHED = {
    "sigmoid": torch.sigmoid,
    "and a shape": lambda eta: torch.sigmoid(eta).reshape(-1, *SHAPE),
    "hard": nn.functional.hardsigmoid,
    "softmax": lambda eta: eta.softmax(-1),
}

@pytest.mark.parametrize("name", SQUASHED)
def test_probabilities_called_logits_are_refused(name):
    assert "is it output='probabilities'?" in line(lambda: adapted(net(decoded=SQUASHED[name])))

class BetaPixels(Likelihood):
    "Pixels strictly between 0 and 1."
    def log_px_z(self, eta, x):
        return Beta(2 + eta.exp(), 2., validate_args=True).log_prob(x).sum(-1)

def test_data_that_exclude_0_and_1():
    x = 0.1 + 0.8 * torch.rand(6, *SHAPE, generator=seeded())
    for model in (adapted(net(), BetaPixels()), adapted(net(), BetaPixels(), x=x, x_shape=None)):
        assert evaluate(model, x, 5).iwae.isfinite().all()

class Sure(Likelihood):
    "Takes only pixels that are all alike."
    def log_px_z(self, eta, x):
        if not bool((x == x[:, :1]).all()):
            raise ValueError("pixels differ")
        return -(eta - x).square().sum(-1)

def test_the_trial_takes_the_images_that_are_passed():
    x = torch.full((3, *SHAPE), 0.5)
    assert "pixels differ" in line(lambda: adapted(net(), Sure()))
    for own in (x, x[:1], x.numpy(), x.double()):
        assert adapted(net(), Sure(), x=own, x_shape=None).x_shape == SHAPE
    adapted(net(), x=images(), x_shape=None)
    adapted(net(), x=255 - images(), x_shape=list(map(np.int64, SHAPE)))

WRONG_IMAGES = {
    "other shape": (dict(x=images()), dict(x_shape=(3, 6, 4)), "x_shape is"),
    "no image": (dict(x=images()[:0]), {}, "x has no images"),
    "rows": (dict(x=images().flatten(1)), {}, "images have shape"),
    "neither": ({}, dict(x_shape=None), "x_shape is missing"),
    "range": (dict(x=images().float()), {}, "between 0 and 1"),
}

@pytest.mark.parametrize("name", WRONG_IMAGES)
def test_wrong_images_for_the_trial_are_one_line(name):
    passed, said, match = WRONG_IMAGES[name]
    assert re.search(match, line(lambda: adapted(net(), **passed | said)))

class Sampled(DiagonalGaussian):
    "Its mean is one of samples, as that of a flow must be."
    @property
    def mean(self):
        return self.rsample_and_log_prob(3)[0].mean(0)

def test_a_posterior_may_sample_its_mean():
    v = net(encoded=lambda mu, s: Sampled(mu, 0.5 * s))
    found = evaluate(adapted(v, scale=None), images(), 20)
    torch.testing.assert_close(found.iwae, evaluate(adapted(net()), images(), 20).iwae)

@pytest.mark.parametrize("encoded", [lambda mu, s: Sampled(mu + torch.randn_like(mu), s),
                                     lambda mu, s: Sampled(mu - mu.mean(0), s)])
def test_a_posterior_that_is_itself_a_sample_or_mixes_rows_is_refused(encoded):
    v = net(encoded=encoded)
    assert "must be no sample, and rows must not mix" in line(lambda: adapted(v, scale=None))

class Stubborn(nn.BatchNorm1d):
    "Trains whatever it is told."
    def train(self, mode=True):
        return super().train(True)

@pytest.mark.parametrize("right", [True, False])
def test_a_trial_moves_no_running_moments(right):
    v = net(decoded=(lambda eta: eta) if right else (lambda eta: eta[:, :5]))
    v.down = nn.Sequential(v.down, Stubborn(8))
    before = copy.deepcopy(v.state_dict())
    try:
        adapted(v)
    except InputError:
        pass
    assert all(torch.equal(t, before[k]) for k, t in v.state_dict().items())

def test_a_function_whose_module_is_not_held_is_refused():
    v, other = net(), net()
    calls = (lambda x: v.encode(x)), (lambda z: v.decode(z))
    said = dict(scale="log_var", output="logits")
    wrong = line(lambda: adapt(*calls, Bernoulli(), Z, SHAPE, module=other, **said))
    assert wrong.startswith("the encoder uses v, which is no part of module=")
    both = nn.ModuleList([other, v])
    for module in (v, both):
        assert adapt(*calls, Bernoulli(), Z, SHAPE, module=module, **said)

# --- probabilities that saturate --------------------------------------------------------------------

def bright(logit):
    "A decoder that is as sure as this that every pixel is bright."
    return lambda eta: torch.sigmoid(logit + 0 * eta)

@pytest.mark.parametrize("logit, double, expected", [(30., False, 1), (10., False, 0), (30., True, 0)])
def test_probabilities_of_1_are_warned_of(logit, double, expected):
    v = net(decoded=bright(logit))
    v = v.double() if double else v
    model, messages = warned(lambda: adapted(v, output="probabilities"))
    found, later = warned(lambda: evaluate(model, images(), 5))
    messages += later
    assert len(messages) == expected and all("let it return logits" in m for m in messages)
    exact = evaluate(adapted(net(decoded=lambda eta: logit + 0 * eta)), images(), 5).iwae
    high = bool((found.iwae > exact + 1).all())
    assert high == bool(expected)

def test_saturation_beyond_the_trial_is_warned_of():
    "Only latents far from the prior saturate."
    encode = lambda x: (torch.zeros(len(x), Z),) * 2
    decode = lambda z: torch.sigmoid(z.sum(1, keepdim=True).expand(-1, D))
    said = dict(scale="log_var", output="probabilities", module=nn.Identity())
    model, messages = warned(lambda: adapt(encode, decode, Bernoulli(), Z, SHAPE, **said))
    assert not messages
    with torch.no_grad():
        _, messages = warned(lambda: [model.eval().decoder(torch.full((3, Z), 20.)) for _ in range(3)])
    assert len(messages) == 1

# --- one module, two methods ------------------------------------------------------------------------

SHORT = TrainConfig(epochs=2, batch_size=6, kl_warmup=0, dreams=0.5, lr_warmup=0, lr=0.01)
OF_DECODER = {"up", "norm", "weight", "shift", "common"}

def changed(v, before):
    "The first names of what learned."
    return {k.split(".")[0] for k, p in v.named_parameters() if not torch.equal(p, before[k])}

@pytest.mark.filterwarnings("ignore")
def test_refit_with_dreams_of_two_methods():
    v = net()
    model, before = adapted(v), copy.deepcopy(v.state_dict())
    refit(model, images(), images(), "static", SHORT, bar=False)
    assert changed(v, before) == {"down", "mu", "log_var"}
    assert torch.equal(v.norm.running_mean, before["norm.running_mean"])

@pytest.mark.filterwarnings("ignore")
def test_training_with_dreams_of_two_methods():
    v = net()
    model, before = adapted(v), copy.deepcopy(v.state_dict())
    train(model, images(), images(), "static", SHORT, bar=False)
    assert changed(v, before) == {"down", "mu", "log_var"} | OF_DECODER

def test_the_decoder_holds_what_it_uses():
    v = net()
    model = adapted(v)
    names = {id(p): k.split(".")[0] for k, p in v.named_parameters()}
    assert {names[id(p)] for p in model.decoder.parameters() if id(p) in names} == OF_DECODER
    assert v.norm in set(model.decoder.modules()) and v.down not in set(model.decoder.modules())
    assert {id(p) for p in v.parameters()} <= {id(p) for p in model.parameters()}
    other = copy.deepcopy(model)
    with torch.no_grad():
        v.weight.zero_()
    torch.testing.assert_close(evaluate(other, images(), 5).iwae, evaluate(adapted(net()), images(), 5).iwae)

@pytest.mark.filterwarnings("ignore")
def test_the_gradients_of_a_step_with_dreams_are_those_of_separate_modules():
    class Half(nn.Module):
        def __init__(self, v, name):
            super().__init__()
            keep = ("down", "mu", "log_var") if name == "encode" else ("up", "norm", "weight", "shift")
            for k in keep:
                setattr(self, k, getattr(v, k))
            self.encoded = self.decoded = lambda *found: found if len(found) > 1 else found[0]
            self.register_buffer("common", torch.ones(()))
            self.forward = getattr(Net, name).__get__(self)
    def without(v):
        del v.common
        v.register_buffer("common", torch.ones(()))
        return v
    ours, theirs = without(net()), without(net())
    one = adapted(ours)
    two = adapt(Half(theirs, "encode"), Half(theirs, "decode"), Bernoulli(), Z, SHAPE, "log_var", "logits")
    for model in (one, two):
        train(model, images(), images(), "static", SHORT, bar=False)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)

@pytest.mark.filterwarnings("ignore")
def test_checkpoints_of_two_methods(tmp_path):
    whole, stopped = adapted(net()), adapted(net())
    config = TrainConfig(epochs=3, batch_size=6, lr_warmup=0, checkpoint_seconds=0)
    train(whole, images(), images(), "static", config, bar=False)
    path = tmp_path / "train.safetensors"
    train(stopped, images(), images(), "static", replace(config, epochs=2), path=path, bar=False)
    train(stopped, images(), images(), "static", config, path=path, bar=False)
    for a, b in zip(whole.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(a, b)

def test_an_encoder_of_this_package_inside_the_module():
    v = net()
    v.gp = GPEncoder(nn.Sequential(nn.Flatten(), nn.Linear(D, 8), nn.Tanh()), 8, Z)
    before = copy.deepcopy(v.state_dict())
    model = adapt(v.gp, v.decode, Bernoulli(), Z, SHAPE, output="logits")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refit(model, images(), images(), "static", SHORT, bar=False)
    assert changed(v, before) == {"gp"}

def test_nothing_to_learn_is_one_line():
    v = net()
    encode, decode = (lambda x: (x.flatten(1)[:, :Z] * v.common,) * 2), (lambda z: v.decode(z))
    said = dict(scale="log_var", output="logits", module=v)
    model = adapt(encode, decode, Bernoulli(), Z, SHAPE, **said)
    assert "nothing that learns has a part in the bound" in line(
        lambda: refit(model, images(), images(), "static", SHORT, bar=False))
