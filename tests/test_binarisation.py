"What a model sees of images when nothing is said: by its likelihood, or one line."
import numpy as np
import pytest
import torch

from gpvae.checks import InputError
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.encoders.natural_step import with_natural_step
from gpvae.evaluation.ais import AISConfig, ais
from gpvae.evaluation.gap import iwae_by_width, measure_gaps
from gpvae.evaluation.iwae import evaluate
from gpvae.evaluation.likelihood import log_likelihood
from gpvae.evaluation.scores import leverage, scores
from gpvae.inference.best_gaussian import Climb, best_gaussians
from gpvae.likelihoods import Bernoulli, Gaussian
from gpvae.networks import conv_trunk, ConvDecoder, mlp_decoder, mlp_trunk
from gpvae.training import TrainConfig, train
from gpvae.vae import VAE
from toys import perturb, seeded

SHAPE, Z, D = (3, 8, 8), 2, 192

def native(likelihood):
    torch.manual_seed(0)
    encoder, decoder = AmortizedEncoder(mlp_trunk(SHAPE, (10,)), 10, Z), mlp_decoder(Z, SHAPE, (10,))
    return perturb(VAE(encoder, decoder, likelihood), 0.1)

def grey(n=4):
    return torch.randint(0, 256, (n, *SHAPE), generator=seeded(3), dtype=torch.uint8)

def binary(n=4):
    return 255 * (grey(n) > 127).to(torch.uint8)

PARTS = "bound", "annealed"
SHORT = AISConfig(temperatures=3, chains=2, leapfrog_steps=1)
CLIMB = Climb(steps=2)

MEASURES = { # each: model, images, what is said -> numbers
    "evaluate": lambda m, x, *how: evaluate(m, x, 3, *how).iwae,
    "ais": lambda m, x, *how: ais(m, x, SHORT, *how).log_px,
    "gaps": lambda m, x, *how: measure_gaps(m, x, SHORT, CLIMB, *how, samples=3, parts=PARTS).log_px,
    "best Gaussians": lambda m, x, *how: best_gaussians(m, x, CLIMB, *how, samples=3).bound,
    "widths": lambda m, x, *how: iwae_by_width(m, x, 3, *how, widths=(2.,))[2.],
    "scores": lambda m, x, *how: scores(m, x, *how)["reconstruction"],
    "leverage": lambda m, x, *how: leverage(m, x, x, *how)["leverage"],
    "natural step": lambda m, x, *how: evaluate(with_natural_step(m, x, *how), x, 3, *how).iwae,
}
SEEN = { # likelihood, images, what they are seen by
    "grey": (lambda: Gaussian(D), grey, "none"),
    "binary": (Bernoulli, binary, "static"),
    "binary pixels of a Gaussian": (lambda: Gaussian(D), binary, "none"),
    "floats": (lambda: Gaussian(D), lambda: grey() / 255, "floats"),
    "binary floats": (Bernoulli, lambda: binary() / 255, "floats"),
}

@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("measure", MEASURES)
def test_the_likelihood_says_what_is_seen(name, measure):
    likelihood, images, how = SEEN[name]
    model, x, measured = native(likelihood()), images(), MEASURES[measure]
    np.testing.assert_array_equal(np.asarray(measured(model, x)), np.asarray(measured(model, x, how)))

@pytest.mark.filterwarnings("ignore")
def test_of_log_likelihood():
    model, x = native(Gaussian(D)), grey()
    found = [log_likelihood(model, x, 1e9, *how, pilot=2).log_px for how in ((), ("none",))]
    assert torch.equal(*found)

def last(x):
    return x.permute(0, 2, 3, 1)

REFUSED = { # likelihood, images, what is said, the line
    "grey under Bernoulli": (Bernoulli, grey, (), "the images are grey, .* say binarisation='static'"),
    "grey floats under Bernoulli": (Bernoulli, lambda: grey() / 255, (), "or 'none' or 'floats'"),
    "thresholds under a Gaussian": (lambda: Gaussian(D), grey, ("static",), "is of grey levels: say 'none'"),
    "channels last": (Bernoulli, lambda: last(binary()), (), r"\[8, 8, 3\], .*\[3, 8, 8\].*permute"),
    "channels last, said": (Bernoulli, lambda: last(binary()), ("static",), "with x.permute"),
    "one dimension": (Bernoulli, lambda: binary().flatten(1), (), r"images have shape \[4, 192\]"),
    "whole numbers": (Bernoulli, lambda: binary().long(), (), "pixels are int64"),
    "0 and 1 as uint8": (Bernoulli, lambda: binary() // 255, (), "multiply the images by 255"),
}

@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("measure", MEASURES)
def test_what_does_not_fit_is_one_line(name, measure):
    likelihood, images, said, match = REFUSED[name]
    with pytest.raises(InputError, match=match) as error:
        MEASURES[measure](native(likelihood()), images(), *said)
    assert "\n" not in str(error.value)

@pytest.mark.parametrize("said", ["static", "none"])
def test_what_is_said_of_grey_levels_under_bernoulli_is_done(said):
    seen = (grey() > 127).float() if said == "static" else grey() / 255
    model = native(Bernoulli())
    assert torch.equal(evaluate(model, grey(), 3, said).iwae, evaluate(model, seen, 3, "floats").iwae)

def test_of_a_convolutional_model_and_of_training():
    torch.manual_seed(0)
    model = VAE(AmortizedEncoder(conv_trunk(SHAPE, 8, 4), 8, Z), ConvDecoder(Z, SHAPE, 8, 4), Gaussian(D))
    wrong = last(grey())
    with pytest.raises(InputError, match="channels are last"):
        evaluate(model, wrong, 3)
    config = TrainConfig(epochs=1)
    with pytest.raises(InputError, match="channels are last"):
        train(model, wrong, wrong, "none", config, bar=False)
    with pytest.raises(InputError, match="say 'none'"):
        train(model, grey(), grey(), "static", config, bar=False)
