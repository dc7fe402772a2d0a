"Small models whose answers are known, shared by the tests."
import math
from dataclasses import dataclass

import torch
from torch import nn

from gpvae.encoders.gp import GPEncoder
from gpvae.likelihoods import Bernoulli, Gaussian
from gpvae.networks import mlp_decoder, mlp_trunk
from gpvae.posteriors import DiagonalGaussian, Posterior
from gpvae.vae import VAE, Encoder

F64 = torch.float64
SHAPE = (1, 3, 2)  # of the images of the linear-Gaussian model: six pixels
Z = 2              # its latents

def seeded(seed=0): return torch.Generator().manual_seed(seed)

def perturb(module, scale, seed=0):
    "Move every parameter, so that nothing is at its special starting value."
    g = seeded(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g, dtype=F64).to(p.dtype))
    return module

def assert_zero(samples, errors=4.):
    "The mean of independent samples is zero within `errors` standard errors."
    samples = samples.double().flatten()
    mean, se = samples.mean(), samples.std() / len(samples) ** 0.5
    assert abs(mean) <= errors * se + 1e-12, f"mean {mean:.6f} is not zero within {errors} x {se:.6f}"

def assert_positive(samples, errors=3.):
    "The mean of independent samples is positive by more than `errors` standard errors."
    samples = samples.double().flatten()
    mean, se = samples.mean(), samples.std() / len(samples) ** 0.5
    assert mean > errors * se, f"mean {mean:.6f} is not above zero by {errors} x {se:.6f}"

class Call(Encoder):
    "An encoder from a function of the images."
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, log_joint=None): return self.function(x)

@dataclass(frozen=True)
class FullGaussian(Posterior):
    "A posterior with a full covariance, written without the package."
    mu: torch.Tensor    # [B, Z]
    tril: torch.Tensor  # [Z, Z]

    @property
    def mean(self): return self.mu
    def inflate(self, factor): return FullGaussian(self.mu, factor**0.5 * self.tril)
    def distribution(self): return torch.distributions.MultivariateNormal(self.mu, scale_tril=self.tril)
    def log_prob(self, z): return self.distribution().log_prob(z)
    def rsample_and_log_prob(self, S=1, generator=None):
        z = self.mu + torch.randn((S, *self.mu.shape), dtype=self.mu.dtype, generator=generator) @ self.tril.T
        return z, self.log_prob(z)
    def kl(self):
        prior = torch.distributions.MultivariateNormal(
            torch.zeros_like(self.mu), torch.eye(self.mu.shape[1], dtype=self.mu.dtype)
        )
        return torch.distributions.kl_divergence(self.distribution(), prior)

class LinearGaussian:
    "p(z) = N(0, I), p(x|z) = N(A z + a, s² I): log p(x) and p(z|x) in closed form."
    def __init__(self, orthogonal=False, seed=0):
        g, D = seeded(seed), math.prod(SHAPE)
        self.A = torch.randn(D, Z, generator=g, dtype=F64) + (0 if orthogonal
                                                              else torch.randn(D, 1, generator=g, dtype=F64))
        if orthogonal:
            self.A = torch.linalg.qr(self.A).Q * torch.tensor([1.5, 0.7], dtype=F64)
        self.a, self.s = torch.randn(D, generator=g, dtype=F64), 0.6
        self.decoder, self.likelihood = nn.Linear(Z, D).double(), Gaussian(D, init_scale=self.s).double()
        with torch.no_grad():
            self.decoder.weight.copy_(self.A)
            self.decoder.bias.copy_(self.a)
        self.likelihood.raw_scale.data.fill_(math.log(math.expm1(self.s - self.likelihood.min_scale)))
        self.cov = torch.linalg.inv(torch.eye(Z, dtype=F64) + self.A.T @ self.A / self.s**2)

    def images(self, n, seed=1):
        g = seeded(seed)
        z, noise = (torch.randn(n, Z, generator=g, dtype=F64),
                    torch.randn(n, len(self.a), generator=g, dtype=F64))
        return (z @ self.A.T + self.a + self.s * noise).reshape(n, *SHAPE)

    def mean(self, x): return (x.flatten(1).double() - self.a) @ self.A @ self.cov / self.s**2
    def exact(self, x): return FullGaussian(self.mean(x), torch.linalg.cholesky(self.cov))
    def log_px(self, x):
        cov = self.A @ self.A.T + self.s**2 * torch.eye(len(self.a), dtype=F64)
        return torch.distributions.MultivariateNormal(self.a, cov).log_prob(x.flatten(1).double())

    def rough(self, x, shift=0.2, width=1.3):
        "A diagonal Gaussian beside the posterior: moved, and of another width."
        return DiagonalGaussian(self.mean(x) + shift,
                                (0.5 * self.cov.diagonal().log() + math.log(width)).expand(len(x), Z))

    def gap(self, x, q):
        "KL(q ‖ p(z|x)) of a diagonal Gaussian: what its bound lacks."
        q = torch.distributions.MultivariateNormal(q.mu, torch.diag_embed(torch.exp(2 * q.log_sigma)))
        return torch.distributions.kl_divergence(q, self.exact(x).distribution())
    def model(self, posterior): return VAE(Call(posterior), self.decoder, self.likelihood).double()

def gp_encoder(h_dim=4, z_dim=Z, shape=(1, 4, 4), scale=0.5, seed=0, init_scale=0.5, **options):
    "A GP encoder in float64 with every parameter moved from its start."
    torch.manual_seed(seed)
    options = dict(features="layernorm") | options
    encoder = GPEncoder(mlp_trunk(shape, (8, h_dim)), h_dim, z_dim, **options).double()
    for layer in (encoder.W, encoder.U):
        widen(layer, init_scale)
    return perturb(encoder, scale, seed)

def widen(layer, scale):
    "Give a random layer's weights this posterior standard deviation."
    for name, p in layer.cov.named_parameters():
        if name in ("log_scale", "log_diag"):
            p.data.fill_(math.log(scale))
    return layer

def bernoulli_model(encoder, z_dim=Z, shape=(1, 4, 4), seed=0):
    "A model of binary pixels around an encoder, with a decoder that matters."
    torch.manual_seed(seed)
    return VAE(encoder, perturb(mlp_decoder(z_dim, shape, (8,)).double(), 0.5, seed), Bernoulli())

def binary_images(n, shape=(1, 4, 4), seed=1, dtype=F64):
    return (torch.rand((n, *shape), generator=seeded(seed)) < 0.5).to(dtype)
