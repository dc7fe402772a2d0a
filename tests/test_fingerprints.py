"A file of finished images answers only for its model, also where no tensor tells two models apart."
import copy

import pytest
import torch
from torch import nn

from gpvae.adapters import adapt
from gpvae.checks import InputError
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.evaluation.ais import AISConfig, ais, probe
from gpvae.evaluation.gap import measure_gaps
from gpvae.likelihoods import Bernoulli, Gaussian
from gpvae.vae import VAE
from toys import perturb, seeded

SHAPE, Z, D = (1, 4, 4), 2, 16
SHORT = AISConfig(temperatures=5, chains=2, leapfrog_steps=1)

def images():
    return 255 * torch.bernoulli(torch.full((3, *SHAPE), 0.4), generator=seeded()).to(torch.uint8)

class Net(nn.Module):
    "Whose decoder ends in a function that is no module."
    def __init__(self, squash=torch.relu, last=lambda eta: eta):
        super().__init__()
        self.squash, self.last = squash, last
        self.first, self.second, self.head = nn.Linear(Z, 8), nn.Linear(8, D), nn.Linear(D, 2 * Z)

    def encode(self, x):
        return self.head(x.flatten(1)).chunk(2, 1)

    def decode(self, z):
        return self.last(self.second(self.squash(self.first(z))))

def adapted(output="logits", likelihood=None, **changes):
    torch.manual_seed(0)
    net = perturb(Net(**changes), 0.5)
    return adapt(net.encode, net.decode, likelihood or Bernoulli(), Z, SHAPE, scale="log_var", output=output)

def native(activation, **options):
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(Z, 8), activation, nn.Linear(8, D))
    encoder = AmortizedEncoder(nn.Flatten(), D, Z)
    return perturb(VAE(encoder, decoder, Gaussian(D, **options) if options else Bernoulli()), 0.5)

def with_floor(floor): # of a scale whose weights are those of the other
    model = native(nn.ReLU(), init_scale=0.6)
    model.likelihood.min_scale = floor
    return model

PAIRS = { # two models of the same tensors
    "activation": lambda: (native(nn.ReLU()), native(nn.Tanh())),
    "lower bound of the scale": lambda: (with_floor(1 / 256), with_floor(0.1)),
    "function of a decoder": lambda: (adapted(), adapted(squash=torch.tanh)),
    "last function": lambda: (adapted(), adapted(last=lambda eta: 1.01 * eta)),
    "output": lambda: (adapted(last=torch.sigmoid, output="probabilities"),
                       adapted(last=lambda eta: torch.sigmoid(eta) - 0.5)),
}

@pytest.mark.parametrize("name", PAIRS)
def test_a_model_of_the_same_tensors_is_another_one(name, tmp_path):
    one, other = PAIRS[name]()
    for (_, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b)
    path = tmp_path / "ais.safetensors"
    annealed = ais(one, images(), SHORT, "static", path=path).log_px
    assert torch.equal(ais(copy.deepcopy(one), images(), SHORT, "static", path=path).log_px, annealed)
    with pytest.raises(InputError, match="use another file or delete it"):
        ais(other, images(), SHORT, "static", path=path)
    with pytest.raises(InputError, match="use another file or delete it"):
        measure_gaps(other, images(), SHORT, binarisation="static", parts=("annealed",), path=path)

def test_rounding_is_no_other_model():
    model, x = native(nn.ReLU()), images() / 255
    double = copy.deepcopy(model).double()
    assert probe(model, x) == probe(double, x.double())

def test_modes_and_the_global_generator_stay():
    model = native(nn.Sequential(nn.ReLU(), nn.Dropout(0.5))).train()
    state, x = torch.get_rng_state(), images() / 255
    assert probe(model, x) == probe(model, x)
    assert torch.equal(state, torch.get_rng_state()) and all(m.training for m in model.modules())
