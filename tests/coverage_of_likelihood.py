"""Does the error that `log_likelihood` reports cover what its estimate lacks? Small models whose log p(x) is
known by quadrature: `python tests/coverage_of_likelihood.py` runs all of them and prints a table."""
import math
import sys
import time
import warnings
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.evaluation.likelihood import log_likelihood
from gpvae.likelihoods import Bernoulli, Gaussian
from gpvae.networks import mlp_decoder, mlp_trunk
from gpvae.pixels import to_float
from gpvae.posteriors import DiagonalGaussian
from gpvae.vae import VAE, Encoder

class Case(NamedTuple):
    "A model, test images, images of its training, and log p(x) by quadrature."
    model: VAE
    x: Tensor
    near: Tensor
    binarisation: str = "floats"

    def exact(self) -> Tensor:
        "log p(x), nats."
        return quadrature(self.model.eval(), to_float(self.x, self.binarisation))

class Regression(Encoder):
    "A diagonal Gaussian by least squares on simulated pairs: what a quick encoder knows."
    def __init__(self, x: Tensor, z: Tensor, narrow: float):
        super().__init__()
        A = self.features(x)
        self.W = torch.linalg.lstsq(A.T @ A + 1e-3 * len(A) * torch.eye(A.shape[1]), A.T @ z).solution
        self.log_sigma = ((A @ self.W - z).std(0) * narrow).log()

    def features(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.cat([torch.ones(len(x), 1), x, x.square(), torch.tanh(3 * x)], 1)

    def forward(self, x, log_joint=None):
        mean = self.features(x) @ self.W
        return DiagonalGaussian(mean, self.log_sigma.expand_as(mean))

class Shaped(nn.Module):
    "A linear layer after a function of z; the layer comes first among the parameters' shapes."
    def __init__(self, z_dim: int, shape, width: int, D: int, offset: float = 0.5, size: float = 0.25):
        super().__init__()
        self.shape, self.linear = shape, nn.Linear(width, D)
        with torch.no_grad():
            self.linear.weight.mul_(size * 2)
            self.linear.bias.fill_(offset)

    def forward(self, z): return self.linear(self.shape(z))

SHAPES = { # name -> latents, width, function of z
    "one mode":     (2, 2, lambda z: z),
    "two modes":    (1, 2, lambda z: torch.cat([z.abs(), z.square() / 2], -1)),
    "two of z = 2": (2, 3, lambda z: torch.cat([z[..., :1].abs(), z[..., 1:],
                                                z[..., 1:] * z[..., :1].abs()], -1)),
    "periodic":     (1, 2, lambda z: torch.cat([torch.sin(4 * z), torch.cos(4 * z)], -1)),
    "banana":       (2, 1, lambda z: z[..., 1:] + z[..., :1].square()),
    "rare modes":   (2, 3, lambda z: torch.cat([z, torch.relu(z[..., :1] - 1).square()
                                                * torch.sin(6 * z[..., 1:])], -1)),
    "curved":       (2, 4, lambda z: torch.cat([torch.sin(2 * z), torch.cos(z)], -1)),
}
D = 16

def simulated(shape: str, kind: str, seed: int, n: int = 48, scale: float = 0.1, off: float = 0.,
              narrow: float = 0.7, size: float = 0.25) -> Case:
    "Images of the model itself, with a share `off` that are noise."
    torch.manual_seed(seed)
    z_dim, width, function = SHAPES[shape]
    bernoulli = kind == "bernoulli"
    decoder = Shaped(z_dim, function, width, D, 0. if bernoulli else 0.5, 2. if bernoulli else size)
    likelihood = Bernoulli() if bernoulli else Gaussian(D, init_scale=max(scale, 1.05 / 256))
    if not bernoulli and scale < 1 / 256:
        likelihood.raw_scale.data.fill_(-20.)
    with torch.no_grad():
        z = torch.randn(2000 + n, z_dim)
        x = likelihood.sample(decoder(z)).clamp(0, 1).reshape(-1, 1, 4, 4)
        if scale < 1 / 256:
            x = (x + 0.01 * torch.randn_like(x)).clamp(0, 1)
        known = z[:2000].abs() if "two" in shape else z[:2000] # one of two equal modes
        model = VAE(Regression(x[:2000], known, narrow), decoder, likelihood, z_dim)
        near, x = x[:300], x[2000:].clone()
        bad = max(1, round(off * n)) if off else 0
        x[:bad] = torch.rand(bad, 1, 4, 4).round() if bernoulli else torch.rand(bad, 1, 4, 4)
        return Case(model, x, near)

@torch.no_grad()
def quadrature(model: VAE, x: Tensor, reach: float = 6.5) -> Tensor:
    "log p(x) on a grid of z, refined around its highest cells three times."
    Z, joint, out = model.z_dim, model.log_joint, []
    n = 4001 if Z == 1 else 301
    line = torch.linspace(-reach, reach, n, dtype=torch.float64)
    grid = torch.cartesian_prod(*[line] * Z).reshape(-1, Z)
    h0 = (line[1] - line[0]).item()
    dtype = next(model.decoder.parameters()).dtype
    for image in x.split(1):
        value_at = lambda z: joint(image, z[:, None].to(dtype))[:, 0].double()
        f = lambda z: torch.cat([value_at(part) for part in z.split(20_000)])
        value, z, h, parts = f(grid), grid, h0, []
        for level in range(4):
            top = value.topk(min(300, len(value))).indices
            rest = torch.ones(len(value), dtype=torch.bool)
            if level < 3:
                rest[top] = False
            parts.append(value[rest] + Z * math.log(h))
            if level == 3:
                break
            cells, m = z[top], 21 if Z == 1 else 7
            inner = (torch.arange(m, dtype=torch.float64) + 0.5) / m - 0.5
            offsets = torch.cartesian_prod(*[inner] * Z).reshape(-1, Z) * h
            z, h = (cells[:, None] + offsets).reshape(-1, Z), h / m
            value = f(z)
        out.append(torch.logsumexp(torch.cat(parts), 0))
    return torch.stack(out)

def trained(kind: str, seed: int, n: int = 24, n_train: int = 5000, epochs: int = 8) -> Case:
    "An ordinary VAE with two latents on MNIST's digits."
    from gpvae.data import load, prepare_splits
    from gpvae.training import TrainConfig, train
    torch.manual_seed(seed)
    images = load("mnist", n_train=n_train, n_valid=200)
    splits = prepare_splits(images, "none" if kind == "gaussian" else "fixed")
    x = splits.test[1000 * seed:][:n]
    D = splits.train[0].numel()
    likelihood = Gaussian(D) if kind == "gaussian" else Bernoulli()
    model = VAE(AmortizedEncoder(mlp_trunk(images.x_shape, (128, 128), "gelu"), 128, 2),
                mlp_decoder(2, images.x_shape, (128, 128), "gelu"), likelihood)
    config = TrainConfig(epochs=epochs, batch_size=64, lr=1e-3, kl_warmup=2, seed=seed)
    train(model, splits.train, splits.valid, splits.train_binarisation, config, bar=False)
    how = splits.eval_binarisation
    return Case(model, x, splits.train[:1000], how)

CASES = {
    "one mode, Gaussian":        lambda s: simulated("one mode", "gaussian", s),
    "one mode, Bernoulli":       lambda s: simulated("one mode", "bernoulli", s),
    "two modes, z = 1":          lambda s: simulated("two modes", "gaussian", s),
    "two modes, Bernoulli":      lambda s: simulated("two of z = 2", "bernoulli", s),
    "periodic, z = 1":           lambda s: simulated("periodic", "gaussian", s),
    "banana":                    lambda s: simulated("banana", "gaussian", s, scale=0.05),
    "rare modes":                lambda s: simulated("rare modes", "gaussian", s, scale=0.05),
    "images off the model":      lambda s: simulated("curved", "gaussian", s, off=1.),
    "four per cent of outliers": lambda s: simulated("curved", "gaussian", s, n=96, off=0.04),
    "scale at its floor":        lambda s: simulated("curved", "gaussian", s, scale=0.),
    "floor, one mode":           lambda s: simulated("one mode", "gaussian", s, scale=0.),
    "VAE on grey digits":        lambda s: trained("gaussian", s),
    "VAE on binary digits":      lambda s: trained("bernoulli", s),
}

def run(name: str, seed: int, tolerance: float = 0.1) -> dict[str, object]:
    """A row of the table. An error is tight if it is below five times the lack, or within the tolerance:
    whoever asks for 0.1 nats gets no finer answer."""
    case, start = CASES[name](seed), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        r = log_likelihood(case.model.eval(), case.x, tolerance, case.binarisation, seed=seed, near=case.near)
    lack, seconds = (case.exact() - r.log_px).mean().item(), time.perf_counter() - start
    return {"model": name, "seed": seed, "lacks": lack, "error": r.error, "covered": lack <= r.error,
            "tight": r.error <= max(5 * lack, tolerance), "starts won": r.starts_won,
            "proposal": r.estimator.proposal, "temperatures": r.estimator.temperatures, "seconds": seconds}

if __name__ == "__main__":
    names = sys.argv[1:] or list(CASES)
    rows = [run(name, seed) for seed in range(3) for name in names]
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    print(f"covered {table.covered.mean():.0%}, tight {table.tight.mean():.0%} of {len(table)}")
