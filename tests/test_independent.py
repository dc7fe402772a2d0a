"The same numbers from other people's code: Pyro's bounds, GPyTorch's exact regression. All in float64."
import gpytorch
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO

from gpvae.encoders.gp import RandomLinear
from gpvae.evaluation.iwae import estimate_batch
from gpvae.networks import mlp_trunk
from gpvae.encoders.amortized import AmortizedEncoder
from toys import F64, bernoulli_model, binary_images, perturb, seeded

K = 5 # importance samples

@pytest.fixture(scope="module")
def model():
    "A VAE of binary 4×4 pixels whose bounds are far apart."
    torch.manual_seed(0)
    return bernoulli_model(perturb(AmortizedEncoder(mlp_trunk((1, 4, 4), (8, 8)), 8, 2).double(), 0.4)).eval()

def in_pyro(model):
    "Model and guide over the same networks, one image a batch."
    def joint(x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=model.decoder(z)).to_event(1), obs=x.flatten(1))
    def guide(x):
        phi = model.encoder.trunk(x)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(model.encoder.b(phi), model.encoder.c(phi).exp()).to_event(1))
    return joint, guide

def estimates(objective, model, x, n):
    "n independent values of a bound on one image, by Pyro."
    pyro.set_rng_seed(0)
    with torch.no_grad():
        return torch.tensor([-objective.loss(*in_pyro(model), x) for _ in range(n)], dtype=F64)

def assert_same_mean(a, b, errors=4.):
    "Two sets of independent estimates have one mean, within the error of their difference."
    se = (a.var() / len(a) + b.var() / len(b)) ** 0.5
    assert abs(a.mean() - b.mean()) < errors * se, (
        f"{a.mean():.4f} and {b.mean():.4f} differ by more than {errors} x {se:.4f}"
    )

@pytest.mark.parametrize("image", range(3))
def test_elbo_is_pyros(model, image):
    x = binary_images(3)[image:image + 1]
    theirs = estimates(Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1), model, x,
                       100)
    with torch.no_grad():
        ours = model.elbo(x.expand(5000, -1, -1, -1), 1, seeded())
    assert_same_mean(theirs, ours)

@pytest.mark.parametrize("image", range(3))
def test_iwae_is_pyros(model, image):
    x = binary_images(3)[image:image + 1]
    theirs = estimates(RenyiELBO(alpha=0, num_particles=K, vectorize_particles=True, max_plate_nesting=1),
                       model, x, 400)
    with torch.no_grad():
        ours = estimate_batch(model, x.expand(5000, -1, -1, -1), K, rows=100_000, generator=seeded())
    assert_same_mean(theirs, ours.iwae)
    assert (
        abs(ours.elbo.mean() - theirs.mean()) > 6 * theirs.std() / len(theirs) ** 0.5
    )  # so that it is the importance weighting which agrees

# --- exact regression -----------------------------------------------------------------------------

ALPHA, NOISE = 0.8, 0.3

def data():
    """Features and noisy values of two functions; more features than the prior alone would fix, fewer than
    images."""
    psi, new = (torch.randn(n, 4, generator=seeded(n), dtype=F64) for n in (12, 5))
    y = psi @ torch.randn(4, 2, generator=seeded(2), dtype=F64) + NOISE**0.5 * torch.randn(
        12, 2, generator=seeded(3), dtype=F64
    )
    return psi, y, new

def objective(layer, psi, y):
    """E_q log N(y; W ψ, noise) less the package's KL: the pseudo-likelihood is Gaussian, so the expectation
    is exact."""
    return -0.5 / NOISE * ((y - psi @ layer.mean.T).square() + layer.cov.var(psi)).sum() - layer.kl()

def optimum(psi, y):
    "The q(W) that maximises the objective."
    layer = RandomLinear(4, 2, "full", prior_scale=ALPHA).double()
    layer.log_prior.data.fill_(torch.tensor(ALPHA, dtype=F64).log())
    optimizer = torch.optim.LBFGS([layer.mean, *layer.cov.parameters()], max_iter=1000, tolerance_grad=1e-11,
                                  tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -objective(layer, psi, y)
        loss.backward()
        return loss
    optimizer.step(closure)
    return layer

class Exact(gpytorch.models.ExactGP):
    "GPyTorch's exact GP with the kernel alpha² ψᵀψ' and a zero mean."
    def __init__(self, psi, y):
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        super().__init__(psi, y, likelihood)
        self.mean, self.kernel = gpytorch.means.ZeroMean(), gpytorch.kernels.LinearKernel()
        self.double()
        likelihood.double()
        self.kernel.variance, likelihood.noise = ALPHA**2, NOISE
    def forward(self, psi): return gpytorch.distributions.MultivariateNormal(self.mean(psi), self.kernel(psi))

def test_optimal_weights_give_the_exact_regression():
    psi, y, new = data()
    layer = optimum(psi, y)
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        mean, var = new @ layer.mean.T, layer.cov.var(new)
        for j in range(2):
            exact = Exact(psi, y[:, j]).eval()(new)
            torch.testing.assert_close(mean[:, j], exact.mean, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(var[:, j], exact.variance, rtol=1e-6, atol=1e-6)

def test_the_optimum_is_the_evidence():
    """At the optimum the objective is the log marginal likelihood of the regression, but for the constant of
    the noise."""
    psi, y, _ = data()
    p = torch.distributions.MultivariateNormal(torch.zeros(12, dtype=F64),
                                               ALPHA**2 * psi @ psi.T + NOISE * torch.eye(12, dtype=F64))
    constant = -0.5 * y.numel() * torch.tensor(2 * torch.pi * NOISE, dtype=F64).log()
    torch.testing.assert_close(objective(optimum(psi, y), psi, y).detach() + constant, p.log_prob(y.T).sum(),
                               rtol=1e-8, atol=1e-8)
