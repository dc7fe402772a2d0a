"""A VAE from elsewhere: the same numbers as a native model of the same weights, one line for what cannot be
right, nothing changed by measuring."""
import copy
import importlib.util
import inspect
import math
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

from gpvae.adapters import adapt
from gpvae.evaluation.ais import AISConfig, ais, simulate
from gpvae.checks import InputError
from gpvae.evaluation.gap import measure_gaps
from gpvae.encoders.gp import GPEncoder
from gpvae.evaluation.iwae import evaluate
from gpvae.likelihoods import Bernoulli, Gaussian
from gpvae.networks import mlp_decoder, mlp_trunk
from gpvae.inference.best_gaussian import Climb
from gpvae.posteriors import DiagonalGaussian
from gpvae.training import TrainConfig, train
from gpvae.evaluation.scores import scores
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.vae import VAE
from toys import SHAPE as TOY_SHAPE
from toys import Z as TOY_Z
from toys import LinearGaussian, assert_zero, perturb, seeded

SHAPE, Z, H = (1, 8, 8), 3, 20

def images(n=30):
    return 255 * torch.bernoulli(torch.full((n, *SHAPE), 0.3), generator=seeded(5)).to(torch.uint8)

def native():
    "A model of this package whose decoder is far from its start."
    torch.manual_seed(0)
    model = VAE(AmortizedEncoder(mlp_trunk(SHAPE, (H,)), H, Z), mlp_decoder(Z, SHAPE, (H,)), Bernoulli())
    return perturb(model, 0.3)

class Foreign(nn.Module):
    "The weights of a native model behind other conventions; latents have two dimensions, pixels four."
    def __init__(self, model, encoded=lambda mu, log_sigma: (mu, 2 * log_sigma), decoded=lambda eta: eta):
        super().__init__()
        self.model, self.encoded, self.decoded = copy.deepcopy(model), encoded, decoded
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(1, eps=1e-12, affine=False) # the identity in evaluation mode

    def encode(self, x):
        assert x.ndim == 4
        q = self.model.encoder(self.norm(self.drop(x)))
        return self.encoded(q.mu, q.log_sigma)

    def decode(self, z):
        assert z.ndim == 2
        return self.decoded(self.model.decoder(self.drop(z)).reshape(-1, *SHAPE))

def adapted(foreign, likelihood=None, **said):
    said = dict(scale="log_var", output="logits") | said
    return adapt(foreign.encode, foreign.decode, likelihood or Bernoulli(), Z, SHAPE, **said)

class Output(OrderedDict):
    "Like pythae's ModelOutput, whose integer keys are positions."
    def __getitem__(self, k): return dict(self.items())[k] if isinstance(k, str) else tuple(self.values())[k]

CONVENTIONS = {"log_var": ("log_var", lambda mu, s: (mu, 2 * s)),
               "log_sigma": ("log_sigma", lambda mu, s: [mu, s]),
               "var": ("var", lambda mu, s: (mu, torch.exp(2 * s))),
               "sigma": ("sigma", lambda mu, s: (mu, s.exp())),
               "mapping": (None, lambda mu, s: dict(embedding=mu, log_covariance=2 * s)),
               "pythae": (None, lambda mu, s: Output(embedding=mu, log_covariance=2 * s)),
               "normal": (None, lambda mu, s: Normal(mu, s.exp())),
               "independent": (None, lambda mu, s: Independent(Normal(mu, s.exp()), 1)),
               "posterior": (None, lambda mu, s: DiagonalGaussian(mu, s)),
               "full": (None, lambda mu, s: MultivariateNormal(mu, scale_tril=torch.diag_embed(s.exp())))}

@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_gives_the_numbers_of_the_native_model(name):
    scale, encoded = CONVENTIONS[name]
    ours, theirs = native(), adapted(Foreign(native(), encoded), scale=scale)
    for a, b in zip(evaluate(ours, images(), 50), evaluate(theirs, images(), 50)):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-4 if name != "full" else 2e-2)

DECODERS = {"images": ("logits", lambda eta: eta),
            "rows": ("logits", lambda eta: eta.flatten(1)),
            "reconstruction": ("logits", lambda eta: Output(reconstruction=eta)),
            "probabilities": ("probabilities", torch.sigmoid)}

@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_gives_the_numbers_of_the_native_model(name):
    output, decoded = DECODERS[name]
    ours, theirs = native(), adapted(Foreign(native(), decoded=decoded), output=output)
    torch.testing.assert_close(evaluate(ours, images(), 50).iwae, evaluate(theirs, images(), 50).iwae,
                               rtol=2e-5, atol=1e-3)

def test_annealing_gaps_and_scores_are_those_of_the_native_model():
    ours, theirs, x = native(), adapted(Foreign(native())), images(4)
    config = AISConfig(temperatures=20, chains=4)
    torch.testing.assert_close(ais(ours, x, config).log_px, ais(theirs, x, config).log_px, rtol=1e-4,
                               atol=1e-2)
    a, b = (measure_gaps(m, x, how=Climb(steps=100), samples=50, parts=("bound", "diagonal"))
            for m in (ours, theirs))
    np.testing.assert_allclose(a.diagonal, b.diagonal, atol=1e-2)
    np.testing.assert_allclose(a.elbo, b.elbo, atol=1e-3)
    a, b = scores(ours, x), scores(theirs, x)
    for name in ("entropy", "reconstruction", "kl"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-3)

def test_latents_of_any_leading_shape():
    model = adapted(Foreign(native())).eval()
    z = torch.randn(5, 7, Z, generator=seeded())
    eta = model.decoder(z)
    assert eta.shape == (5, 7, 64) and model.decoder(z[0]).shape == (7, 64)
    assert model.decoder(z[0, 0]).shape == (64,)
    torch.testing.assert_close(model.decoder(z[3]), eta[3])
    assert model.posterior(images(2).float()).mean.shape == (2, Z)
    assert model.log_px_z(images(7).float(), z).shape == (5, 7)

def test_the_exact_posterior_of_a_foreign_gaussian_gives_the_exact_likelihood():
    toy = LinearGaussian()
    net = nn.Module()
    net.decoder = toy.decoder
    encode = lambda x: MultivariateNormal(toy.mean(x),
                                          scale_tril=torch.linalg.cholesky(toy.cov).expand(len(x), -1, -1))
    decode = lambda z: net.decoder(z).reshape(-1, *TOY_SHAPE)
    model = adapt(encode, decode, toy.likelihood, TOY_Z, TOY_SHAPE, module=net)
    x = toy.images(20).clamp(0, 1)
    found = evaluate(model, x, 5, "floats")
    torch.testing.assert_close(found.iwae, toy.log_px(x), rtol=1e-5, atol=1e-4)

def test_simulated_images_have_the_width_of_the_latents():
    x, z = simulate(adapted(Foreign(native())), 6, SHAPE)
    assert x.shape == (6, *SHAPE) and z.shape == (6, Z)

def test_a_native_encoder_is_kept():
    torch.manual_seed(0)
    encoder = GPEncoder(mlp_trunk(SHAPE, (H,)), H, Z)
    model = adapt(encoder, lambda z: native().decoder(z), Bernoulli(), Z, SHAPE, output="logits",
                  module=nn.Identity())
    assert model.encoder is encoder

def test_flat_images():
    net = nn.Linear(64, Z)
    decoder = mlp_decoder(Z, SHAPE, (H,))
    twice = nn.Sequential(net)
    model = adapt(lambda x: (twice(x), torch.zeros(len(x), Z)), decoder, Bernoulli(), Z, SHAPE, "log_var",
                  "logits", True, twice)
    assert math.isfinite(evaluate(model, images(), 5).iwae.mean())

def test_modes_weights_and_generators_stay_as_they_are():
    foreign = Foreign(native()).train()
    foreign.norm.eval()
    before, modes = copy.deepcopy(foreign.state_dict()), [m.training for m in foreign.modules()]
    wants = [p.requires_grad for p in foreign.parameters()]
    state = torch.get_rng_state()
    model = adapted(foreign)
    assert torch.equal(state, torch.get_rng_state())
    evaluate(model, images(), 5)
    measure_gaps(model, images(2), AISConfig(temperatures=3, chains=2), samples=5,
                 parts=("bound", "annealed"))
    assert modes == [m.training for m in foreign.modules()]
    assert wants == [p.requires_grad for p in foreign.parameters()]
    assert all(torch.equal(v, before[k]) for k, v in foreign.state_dict().items())

def test_evaluation_mode_reaches_methods_and_functions():
    foreign, expected = Foreign(native()).train(), evaluate(native(), images(), 20).iwae
    by_function = adapt(lambda x: foreign.encode(x), lambda z: foreign.decode(z), Bernoulli(), Z, SHAPE,
                        "log_var", "logits", module=foreign)
    for model in (adapted(foreign), by_function):
        torch.testing.assert_close(evaluate(model, images(), 20).iwae, expected, rtol=2e-5, atol=1e-3)

def test_a_copy_has_weights_of_its_own():
    foreign = Foreign(native())
    model = copy.deepcopy(adapted(foreign))
    with torch.no_grad():
        for p in foreign.parameters():
            p.zero_()
    torch.testing.assert_close(evaluate(model, images(), 5).iwae, evaluate(native(), images(), 5).iwae,
                               rtol=2e-5, atol=1e-3)

def test_double_precision():
    model = adapted(Foreign(native()).double())
    assert_zero(evaluate(model, images(), 400).elbo - evaluate(native(), images(), 400, seed=1).elbo)
    assert model.posterior(images(2).float()).mean.dtype == torch.float64
    assert ais(model, images(2), AISConfig(temperatures=3, chains=2)).log_px.isfinite().all()

def test_probabilities_of_nought_and_one_are_finite():
    certain = Foreign(native(), decoded=lambda eta: (eta > 0).to(eta.dtype) + 0 * eta)
    assert evaluate(adapted(certain, output="probabilities"), images(), 5).iwae.isfinite().all()

def test_it_trains_in_the_loop_of_this_package():
    foreign = Foreign(native())
    before = evaluate(adapted(foreign), images(), 20).elbo.mean()
    train(adapted(foreign), images(), images(10), "static", TrainConfig(epochs=5, batch_size=10, kl_warmup=0),
          bar=False)
    assert evaluate(adapted(foreign), images(), 20).elbo.mean() > before

def refused(match, *parts, **said):
    "The line of the refusal; a model that is taken has none."
    state, line = torch.get_rng_state(), ""
    try:
        inspect.unwrap(adapt)(*parts, **said) # types are not checked for a user
    except InputError as error:
        line = str(error)
    assert re.search(match, line) and "\n" not in line and torch.equal(state, torch.get_rng_state())

PAIR = lambda mu, s: (mu, 2 * s)
ENCODERS = { # what the encoder returns, what is said, what the line says
    "no scale": (PAIR, dict(scale=None), "name what is beside the mean"),
    "unknown scale": (PAIR, dict(scale="logvar"), "did you mean 'log_var'"),
    "one tensor": (lambda mu, s: torch.cat([mu, s], 1), {},
                   r"tensor of shape \[2, 6\]: let it return the pair"),
    "three values": (lambda mu, s: (mu, s, mu), {}, "returns 3 values"),
    "other keys": (lambda mu, s: dict(mean=mu, log_var=s), dict(scale=None),
                   "returns mean, log_var: embedding and log_covariance"),
    "another scale for a mapping": (CONVENTIONS["mapping"][1], dict(scale="log_sigma"),
                                    "log_covariance is log_var"),
    "another width": (lambda mu, s: (mu[:, :2], s[:, :2]), {},
                      r"means \[2, 2\] for 2 images: they must be \[2, 3\]"),
    "another width of a posterior": (lambda mu, s: DiagonalGaussian(mu[:, :2], s[:, :2]), {},
                                     r"must be \[2, 3\]"),
    "one scale": (lambda mu, s: (mu, s[:, :1]), {}, "expand both"),
    "squeezed": (lambda mu, s: (mu.squeeze(0), s.squeeze(0)), {}, r"means \[3\] for 1 images"),
    "negative sigma": (lambda mu, s: (mu, -s.exp()), dict(scale="sigma"), "must be positive"),
    "NaN": (lambda mu, s: (mu * math.nan, s), {}, "not finite"),
    "a sample": (lambda mu, s: (mu + torch.randn_like(mu), s), {}, "it must be no sample"),
    "rows that mix": (lambda mu, s: (mu - mu.mean(0), s), {}, "rows must not mix"),
    "another distribution": (lambda mu, s: torch.distributions.Laplace(mu, s.exp()), {}, "returns a Laplace"),
}

@pytest.mark.parametrize("name", ENCODERS)
def test_a_wrong_encoder_is_refused_in_one_line(name):
    encoded, said, match = ENCODERS[name]
    foreign = Foreign(native(), encoded)
    refused(match, foreign.encode, foreign.decode, Bernoulli(), Z, SHAPE,
            **dict(scale="log_var", output="logits") | said)

WRONG_DECODERS = {
    "nothing said": (lambda eta: eta, dict(output=None), "output='logits' or 'probabilities'"),
    "unknown": (lambda eta: eta, dict(output="logit"), "did you mean 'logits'"),
    "other pixels": (lambda eta: eta[..., :7], {},
                     r"x_shape is \(1, 8, 8\): it must be \[8, 1, 8, 8\] or \[8, 64\]"),
    "logits called probabilities": (lambda eta: eta, dict(output="probabilities"), "is it output='logits'"),
    "probabilities called logits": (torch.sigmoid, {}, "is it output='probabilities'"),
    "other keys": (lambda eta: dict(x_hat=eta), {}, "returns x_hat: reconstruction is read"),
    "a pair": (lambda eta: (eta, eta), {}, "returns 2 values"),
    "one row": (lambda eta: eta[:1], {}, r"returns \[1, 1, 8, 8\] for latents"),
    "NaN": (lambda eta: eta * math.nan, {}, "not finite"),
    "a sample": (lambda eta: eta + torch.randn_like(eta), {}, "must be no sample"),
}

@pytest.mark.parametrize("name", WRONG_DECODERS)
def test_a_wrong_decoder_is_refused_in_one_line(name):
    decoded, said, match = WRONG_DECODERS[name]
    foreign = Foreign(native(), decoded=decoded)
    refused(match, foreign.encode, foreign.decode, Bernoulli(), Z, SHAPE,
            **dict(scale="log_var", output="logits") | said)

def test_other_wrong_arguments_are_refused_in_one_line():
    foreign, said = Foreign(native()), dict(scale="log_var", output="logits")
    e, d, p = foreign.encode, foreign.decode, Bernoulli()
    refused("pass module=", lambda x: e(x), d, p, Z, SHAPE, **said)
    refused("pass module=", e, lambda z: d(z), p, Z, SHAPE, **said)
    refused("the encoder is an object of type int", 3, d, p, Z, SHAPE, **said)
    refused("with log_px_z", e, d, "bernoulli", Z, SHAPE, **said)
    refused("with log_px_z", e, d, nn.Identity(), Z, SHAPE, **said)
    refused("z_dim is 0", e, d, p, 0, SHAPE, **said)
    refused("z_dim is 2.5", e, d, p, 2.5, SHAPE, **said)
    refused(r"must be \(C, H, W\)", e, d, p, Z, (8, 8), **said)
    refused("a size in x_shape is -8", e, d, p, Z, (1, 8, -8), **said)
    refused("the encoder on images .* fails", e, d, p, Z, (1, 9, 9), **said)
    refused(r"flat=True hands it \[B, D\]", nn.Linear(64, 2 * Z), d, p, Z, SHAPE, **said)
    refused("the decoder on latents .* fails", lambda x: (torch.zeros(len(x), 4),) * 2, d, p, 4, SHAPE,
            module=foreign, **said)
    refused("takes what the decoder returns", e, d, Gaussian(64), Z, SHAPE, **said)
    assert adapt(e, d, p, np.int64(Z), tuple(np.array(SHAPE)), **said)

def test_a_pythae_model_gives_its_own_bound():
    pytest.importorskip("pythae", reason="pythae is not installed: pip install gpvae[bench]")
    from pythae.data.datasets import DatasetOutput
    from pythae.models import VAE as PythaeVAE, VAEConfig
    torch.manual_seed(0)
    theirs = PythaeVAE(VAEConfig(input_dim=SHAPE, latent_dim=Z, reconstruction_loss="bce")).eval()
    model, x = adapt(theirs.encoder, theirs.decoder, Bernoulli(), Z, SHAPE, output="probabilities"), images()
    with torch.no_grad():
        losses = torch.stack([theirs(DatasetOutput(data=(x > 127).float())).loss for _ in range(100)])
    assert_zero(evaluate(model, x, 100).elbo.mean() + losses)

@pytest.mark.skipif(importlib.util.find_spec("lightning") is None,
                    reason="lightning is not installed: pip install gpvae[bench]")
def test_a_lightning_module_gives_the_numbers_of_its_network():
    from gpvae import vision  # noqa: F401, mends torchvision beside a torch without CUDA
    import lightning
    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Foreign(native())
        def encode(self, x): return self.net.encode(x)
        def decode(self, z): return self.net.decode(z)
    lit = Lit().train()
    torch.testing.assert_close(evaluate(adapted(lit), images(), 5).iwae, evaluate(native(), images(), 5).iwae,
                               rtol=2e-5, atol=1e-3)
    assert all(m.training for m in lit.modules())
