"""Facts with a known answer: exact likelihoods, a vanishing covariance, two views of one process, moments.
All in float64."""
import math

import pytest
import torch
from torch import nn

from gpvae.encoders.gp import RandomLinear, Standardised
from gpvae.evaluation.iwae import RunningWeights, ess, estimate_batch, evaluate, iwae
from gpvae.likelihoods import Bernoulli, Gaussian, bits_per_dim
from gpvae.posteriors import DiagonalGaussian, FullGaussian, GaussianMixture, gaussian_kl, log_normal
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.vae import VAE
from toys import (F64, SHAPE, Z, Call, LinearGaussian, assert_positive, assert_zero, bernoulli_model,
                  binary_images, gp_encoder, perturb, seeded)

def close(a, b, tol=1e-10): torch.testing.assert_close(a, b, rtol=tol, atol=tol)

# --- 1. linear-Gaussian decoder -------------------------------------------------------------------

def test_exact_posterior_has_constant_weights():
    lg = LinearGaussian()
    x = lg.images(5)
    model = lg.model(lg.exact)
    z, log_qz_x = model.posterior(x).rsample_and_log_prob(50, seeded())
    close(model.log_joint(x, z) - log_qz_x, lg.log_px(x).expand(50, -1))

def test_full_gaussian_as_the_exact_posterior():
    "Its samples, its density anywhere and its KL, against the closed likelihood and torch's own KL."
    lg = LinearGaussian()
    x = lg.images(5)
    q = FullGaussian(lg.mean(x), torch.linalg.cholesky(lg.cov).expand(5, Z, Z))
    z, log_qz_x = q.rsample_and_log_prob(50, seeded())
    close(lg.model(lg.exact).log_joint(x, z) - log_qz_x, lg.log_px(x).expand(50, -1))
    close(q.log_prob(z), log_qz_x)
    close(q.log_prob(z + 1), lg.exact(x).log_prob(z + 1))
    close(q.kl(), lg.exact(x).kl())

def test_exact_diagonal_posterior_has_constant_weights():
    lg = LinearGaussian(orthogonal=True)
    assert abs(lg.cov[0, 1]) < 1e-12 and lg.cov[0, 0] < 0.9 * lg.cov[1, 1]
    x = lg.images(5)
    model = lg.model(lambda x: lg.rough(x, shift=0, width=1))
    q = model.posterior(x)
    z, log_qz_x = q.rsample_and_log_prob(50, seeded())
    close(model.log_joint(x, z) - log_qz_x, lg.log_px(x).expand(50, -1))
    close(q.log_prob(z), log_qz_x)
    r = estimate_batch(model, x, 50)
    close(r.iwae, lg.log_px(x))
    close(r.elbo, lg.log_px(x))
    close(r.ess, torch.full_like(r.ess, 50))

def test_elbo_is_the_likelihood_less_the_gap():
    lg = LinearGaussian()
    x = lg.images(1000)
    model = lg.model(lg.rough)
    exact = lg.log_px(x) - lg.gap(x, lg.rough(x))
    with torch.no_grad():
        assert_zero(model.elbo(x, 20, seeded()) - exact)
        assert_zero(estimate_batch(model, x, 20, generator=seeded(1)).elbo - exact)

def test_bounds_are_ordered():
    lg = LinearGaussian()
    x = lg.images(4000)
    model = lg.model(lg.rough)
    with torch.no_grad():
        r5, r100 = (estimate_batch(model, x, k, rows=400_000, generator=seeded(k)) for k in (5, 100))
    assert_positive(r5.iwae - r5.elbo)
    assert_positive(r100.iwae - r5.iwae)
    assert_positive(lg.log_px(x) - r100.iwae)

def test_iwae_reaches_the_likelihood():
    lg = LinearGaussian()
    x = lg.images(20)
    with torch.no_grad():
        r = estimate_batch(lg.model(lg.rough), x, 20_000, rows=40_000, generator=seeded())
    error = r.iwae - lg.log_px(x)
    assert error.abs().max() < 0.05
    assert_zero(error, errors=4)

def test_inflation_is_of_the_variance():
    lg = LinearGaussian(orthogonal=True)
    x = lg.images(5)
    half = lg.model(lambda x: lg.rough(x, shift=0, width=0.5 ** 0.5))
    close(estimate_batch(half, x, 10, inflation=2.).iwae, lg.log_px(x))

# --- sums, not means: likelihoods, densities and KLs against torch.distributions ------------------

def test_bernoulli_sums_over_pixels():
    eta, x = torch.randn(3, 4, 6, generator=seeded(), dtype=F64), binary_images(4, (6,))
    close(Bernoulli().log_px_z(eta, x), torch.distributions.Bernoulli(logits=eta).log_prob(x).sum(-1))

@pytest.mark.parametrize("scale", [0.03, 0.2])
def test_bits_are_those_of_the_cells_of_grey_levels(scale):
    "The probability of an 8-bit image, level by level, where the scale is several levels wide."
    levels = torch.randint(100, 110, (1, 6), generator=seeded())
    x, eta, half = levels.to(F64) / 255, torch.full((1, 1, 6), 0.41, dtype=F64), 0.5 / 255
    likelihood = Gaussian(6, init_scale=scale).double()
    pixel = torch.distributions.Normal(eta[0], scale)
    bits = -(pixel.cdf(x + half) - pixel.cdf(x - half)).log2().mean().item()
    assert (bits_per_dim(likelihood.log_px_z(eta, x).item(), 6) == pytest.approx(bits, abs=3e-3)
            and 3 < bits < 8)

@pytest.mark.parametrize("per_pixel", [False, True])
def test_gaussian_sums_over_pixels(per_pixel):
    likelihood = perturb(Gaussian(6, per_pixel).double(), 0.5)
    eta, x = (torch.randn(3, 4, 6, generator=seeded(), dtype=F64),
              torch.rand(4, 6, generator=seeded(1), dtype=F64))
    close(likelihood.log_px_z(eta, x), torch.distributions.Normal(eta, likelihood.scale).log_prob(x).sum(-1))

def test_normal_and_its_kl():
    z, mu, log_sigma = (torch.randn(s, 4, 3, generator=seeded(s), dtype=F64) for s in (5, 1, 2))
    mu, log_sigma = mu[0], 0.5 * log_sigma[0]
    q = torch.distributions.Normal(mu, log_sigma.exp())
    close(log_normal(z, mu, log_sigma), q.log_prob(z).sum(-1))
    close(gaussian_kl(mu, log_sigma),
          torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1))

def test_mixture_density_and_samples():
    mu, log_sigma = (torch.randn(3, 2, 2, generator=seeded(), dtype=F64),
                     0.3 * torch.randn(3, 2, 2, generator=seeded(1), dtype=F64))
    log_pi = torch.log(torch.tensor([[0.2, 0.6], [0.5, 0.3], [0.3, 0.1]], dtype=F64))
    q = GaussianMixture(mu, log_sigma, log_pi)
    components = torch.distributions.Independent(
        torch.distributions.Normal(mu.transpose(0, 1), log_sigma.exp().transpose(0, 1)), 1
    )
    exact = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=log_pi.T), components
    )
    z, log_qz_x = q.rsample_and_log_prob(20_000, seeded())
    close(log_qz_x, exact.log_prob(z))
    close(q.mean, exact.mean)
    assert_zero((z - exact.mean)[:, 0, 0])
    assert_zero(((z - exact.mean).square() - exact.variance)[:, 1, 1])

# --- importance weights, in chunks and at once ----------------------------------------------------

@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_running_weights_equal_the_direct_sums(chunk):
    log_w = 3 * torch.randn(100, 5, generator=seeded(), dtype=F64) - 900
    running = RunningWeights(5, log_w.device)
    for part in log_w.split(chunk):
        running.add(part)
    r, w = running.result(), torch.exp(log_w + 900)
    close(r.elbo, log_w.mean(0))
    close(r.iwae, w.mean(0).log() - 900)
    close(r.ess, w.sum(0) ** 2 / w.square().sum(0), 1e-9)

def test_direct_sums():
    log_w = 3 * torch.randn(100, 5, generator=seeded(), dtype=F64) - 900
    w = torch.exp(log_w + 900)
    close(iwae(log_w), w.mean(0).log() - 900)
    close(ess(log_w), w.sum(0) ** 2 / w.square().sum(0), 1e-9)
    close(ess(torch.zeros(7, 2, dtype=F64)), torch.full((2,), 7., dtype=F64))

def test_rows_bound_the_memory_and_do_not_change_the_numbers():
    lg = LinearGaussian()
    x, sizes = lg.images(16), []
    model = lg.model(lg.rough)
    model.decoder.register_forward_hook(lambda module, args, out: sizes.append(out.shape[:-1].numel()))
    whole, parts = (estimate_batch(model, x, 40, rows=rows, generator=seeded()) for rows in (10_000, 100))
    assert sizes == [640] + 6 * [96] + [64]
    for a, b in zip(whole, parts):
        close(a, b)

def test_each_batch_is_encoded_once():
    lg, calls = LinearGaussian(), []
    x = (255 * torch.rand(50, *SHAPE, generator=seeded())).byte()
    evaluate(lg.model(lambda x: calls.append(len(x)) or lg.rough(x)), x, k=30, binarisation="none",
             batch_size=20, rows=40)
    assert calls == [20, 20, 10]

@pytest.mark.parametrize("batch_size", [1, 64, 1000])
def test_evaluation_drops_nothing_and_keeps_the_order(batch_size):
    lg, done = LinearGaussian(), []
    x = (255 * torch.rand(130, *SHAPE, generator=seeded())).byte()
    r = evaluate(lg.model(lg.exact), x, k=3, binarisation="none", batch_size=batch_size, progress=done.append)
    assert sum(done) == len(r.iwae) == len(r.elbo) == len(r.ess) == 130
    torch.testing.assert_close(r.iwae, lg.log_px(x / 255), rtol=1e-5, atol=1e-4)

def test_evaluation_is_seeded():
    lg = LinearGaussian()
    x = (255 * torch.rand(30, *SHAPE, generator=seeded())).byte()
    a, b, c = (evaluate(lg.model(lg.rough), x, 5, "none", seed=s).iwae for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_nan_stays_in_its_image():
    lg = LinearGaussian()
    x = lg.images(6)
    x[2, 0, 0, 0] = math.nan
    r = estimate_batch(lg.model(lg.rough), x, 10)
    for column in (r.elbo, r.iwae, r.ess):
        assert column.isnan().nonzero().flatten().tolist() == [2]
    assert r.iwae.mean().isnan()

# --- 2. no variance: the VAE with the heads b + M ψ, c + A ψ --------------------------------------

class WithFeatures(nn.Module):
    "φ(x) and ψ(x) side by side, as the features of a plain VAE."
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        phi = self.encoder.trunk(x)
        return torch.cat([phi, self.encoder.features(phi)], 1)

def as_vae_encoder(encoder, h_dim):
    "The amortized encoder whose linear heads hold the GP encoder's means."
    vae = AmortizedEncoder(WithFeatures(encoder), 2 * h_dim, encoder.b.out_features).double()
    with torch.no_grad():
        for head, base, random in ((vae.b, encoder.b, encoder.W), (vae.c, encoder.c, encoder.U)):
            head.weight.copy_(torch.cat([base.weight, random.mean], 1))
            head.bias.copy_(base.bias)
    return vae

def shrink(encoder):
    "Σ = 0 to rounding, whatever the covariance's kind."
    for layer in (encoder.W, encoder.U):
        for name, p in layer.cov.named_parameters():
            p.data.fill_(0. if name == "lower" else -80.)

@pytest.mark.parametrize("covariance", ["diagonal", "full", "none"])
@pytest.mark.parametrize("mode", ["train", "mean", "marginal", "mixture"])
def test_without_variance_it_is_a_vae(mode, covariance):
    encoder = gp_encoder(covariance=covariance, features="standardised",
                         mode="mean" if mode == "train" else mode)
    x = binary_images(6)
    encoder.train()(binary_images(50, seed=5)) # lets the running moments of the features start
    shrink(encoder)
    vae = as_vae_encoder(encoder, 4).eval()
    expected = vae(x)
    if mode == "train": # training moves the running moments: compare with those of before
        encoder.features.update = lambda phi: None
        q = encoder.train()(x)
    else:
        q = encoder.eval()(x)
    for mu, log_sigma in zip(q.mu.reshape(-1, 6, Z), q.log_sigma.reshape(-1, 6, Z)):
        close(mu, expected.mu, 1e-12)
        close(log_sigma, expected.log_sigma, 1e-12)
    if mode in ("mean", "marginal"):
        terms, other = (bernoulli_model(e).eval().terms(x, 3, seeded()) for e in (encoder, vae))
        close(terms.elbo(), other.elbo(), 1e-12)

# --- 3. weight space and function space -----------------------------------------------------------

def features(n, h_dim, seed=0): return torch.randn(n, h_dim, generator=seeded(seed), dtype=F64)

def covariance_of(layer, psi):
    "[Z, B, B], the exact covariance of W ψ over a batch, from the images of the unit vectors."
    H = psi.shape[1]
    unit = torch.eye(H, dtype=F64)[:, None].expand(H, len(layer.mean), H)
    f = layer.cov.colour(unit) @ psi.T
    return torch.einsum("kza,kzb->zab", f, f)

def at_the_prior(layer, alpha):
    "Prior and posterior of the weights are both N(0, alpha² I), to float64."
    for p in (layer.log_prior,
              layer.cov.log_scale if hasattr(layer.cov, "log_scale") else layer.cov.log_diag):
        p.data.fill_(math.log(alpha))
    return layer

@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_prior_covariance_is_the_kernel(covariance):
    alpha, psi = 0.7, features(6, 4)
    layer = at_the_prior(RandomLinear(4, Z, covariance).double(), alpha)
    kernel = alpha**2 * psi @ psi.T
    close(covariance_of(layer, psi), kernel.expand(Z, -1, -1), 1e-12)
    close(layer.cov.var(psi), kernel.diagonal()[:, None].expand(-1, Z), 1e-12)
    assert abs(layer.kl()) < 1e-12
    f = layer.sample(40_000, seeded()) @ psi.T
    for i, j in ((0, 0), (0, 1), (2, 5)):
        assert_zero((f[..., i] * f[..., j] - kernel[i, j])[:, 0])
    assert_zero(f[:, 0, 0] * f[:, 1, 0]) # outputs are independent

@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_variance_agrees_with_samples_and_covariance(covariance):
    layer, psi = perturb(RandomLinear(4, Z, covariance, init_scale=0.3).double(), 0.4), features(6, 4)
    close(layer.cov.var(psi), covariance_of(layer, psi).diagonal(dim1=1, dim2=2).T, 1e-12)

@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_weight_kl_is_that_of_gaussians(covariance):
    layer = perturb(RandomLinear(4, 3, covariance, prior_scale=0.6, learn_prior_scale=True,
                                 init_scale=0.3).double(), 0.4)
    cov = covariance_of(layer, torch.eye(4, dtype=F64))
    q = torch.distributions.MultivariateNormal(layer.mean, cov)
    p = torch.distributions.MultivariateNormal(
        torch.zeros_like(layer.mean), torch.diag_embed(torch.exp(2 * layer.log_prior)[:, None].expand(-1, 4))
    )
    close(layer.kl(), torch.distributions.kl_divergence(q, p).sum())

def test_features_of_their_own_take_the_gradient_of_the_variance():
    encoder, x = gp_encoder(own_features=True).train(), binary_images(6)
    encoder.functions(x).f_var.sum().backward()
    assert all(p.grad is None for p in encoder.trunk.parameters())
    assert all(p.grad.abs().sum() > 0 for p in encoder.kernel_trunk.parameters())

def test_nothing_is_gained_by_shrinking_features_of_their_own():
    """In training ψ is the same for φ on another scale, so no gradient points that way; running estimates
    would be pulled to nothing."""
    encoder = gp_encoder(own_features=True, features="standardised").train()
    phi = torch.randn(9, 4, generator=seeded(3), dtype=F64, requires_grad=True)
    psi = encoder.features(phi)
    close(encoder.features(0.01 * phi + 5), psi, 1e-6)
    radial = lambda psi: (
        torch.autograd.grad(
            psi.square() @ torch.arange(1.0, 5, dtype=F64) @ torch.arange(1.0, 10, dtype=F64), phi
        )[0]
        * (phi - phi.mean(0))
    ).sum(0)
    shared = gp_encoder(features="standardised").train().features
    shared.update(phi)
    assert (radial(psi).abs() < 0.05 * radial(shared(phi)).abs()).all()
    encoder.features.update(phi)
    close(encoder.eval().features(phi), shared(phi))
    assert encoder.train().features(phi[:1]).isfinite().all() # the moments of one image say nothing

def test_objective_divides_the_weight_kl():
    encoder = gp_encoder(temperature=4.)
    expected = (encoder.W.kl() + encoder.U.kl()) / (4 * 50)
    close(bernoulli_model(encoder).weight_kl_per_image(50), expected)

def test_training_noise_has_the_variance_of_the_functions():
    encoder = gp_encoder().train()
    x = binary_images(1).expand(20_000, -1, -1, -1)
    torch.manual_seed(0)
    r, q = encoder.functions(x[:1]), encoder(x)
    for mean, var, value in ((r.f_mean, r.f_var, q.mu), (r.g_mean, r.g_var, q.log_sigma)):
        assert_zero(value[:, 0] - mean[0, 0])
        assert_zero((value[:, 1] - mean[0, 1]).square() - var[0, 1])

def test_the_mean_trains_the_trunk_and_the_variance_does_not():
    x, encoder, gradient = binary_images(6), gp_encoder(), {}
    for name in ("f_mean", "f_var", "g_mean", "g_var"):
        value = getattr(encoder.functions(x), name).sum()
        gradient[name] = torch.autograd.grad(value, next(encoder.trunk.parameters()), allow_unused=True)[0]
    phi = encoder.trunk(x)
    for name, head, layer in (("f", encoder.b, encoder.W), ("g", encoder.c, encoder.U)):
        expected = torch.autograd.grad((head(phi) + encoder.features(phi) @ layer.mean.T).sum(),
                                       next(encoder.trunk.parameters()), retain_graph=True)[0]
        close(gradient[f"{name}_mean"], expected)
        assert gradient[f"{name}_var"] is None

def test_folding_changes_no_function():
    "The standardisation is inside the weights, in training too: the same functions, with the same gradients."
    encoder, x = gp_encoder(features="standardised"), binary_images(6)
    encoder.train()(binary_images(50, seed=5))
    weights = tuple(p for p in encoder.parameters() if p.requires_grad)
    phi, taken = encoder.trunk(x), encoder.functions(x)
    for a, b, c in zip(encoder._folded(phi)[:4], encoder._unfolded(phi, phi), taken):
        assert torch.equal(a, c)
        close(a, b, 1e-12)
        parts = [torch.autograd.grad(v.sum(), weights, allow_unused=True, retain_graph=True) for v in (a, b)]
        for g, h in zip(*parts):
            if g is None or h is None:
                assert all(p is None or not p.any() for p in (g, h))
            else:
                close(g, h, 1e-12)

def test_the_scale_follows_the_running_moments():
    """ψ of a batch that alone has set the estimates is standardised by its own moments, also after loading
    and editing."""
    layer, phi = Standardised(4).double(), 2 * features(50, 4) + 3
    layer.update(phi)
    var = phi.var(0, unbiased=False)
    expected = (phi - phi.mean(0)) * torch.rsqrt((var + layer.eps * var.mean()) * 4)
    close(layer(phi), expected, 1e-9)
    other = Standardised(4).double()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(phi), layer(phi)) and list(layer.state_dict()) == ["mean", "square", "weight"]
    other.state_dict()["mean"].mul_(0.5) # as an average of weights edits it
    assert not torch.equal(other(phi), layer(phi))
    close(torch.func.functional_call(layer, other.state_dict(), (phi,)), other(phi))
    phi.requires_grad_()
    values = []
    for batch in (phi, 2 * phi): # two updates before one backward pass
        other.update(batch)
        values.append(other(batch).sum())
    sum(values).backward()
    assert phi.grad.isfinite().all()

@pytest.mark.parametrize("batch", [torch.zeros(0, 4), torch.ones(1, 4), torch.ones(50, 4)],
                         ids=["empty", "one image", "constant"])
def test_estimates_stay_finite(batch):
    layer = Standardised(4)
    layer.update(batch)
    assert layer(torch.ones(3, 4)).isfinite().all() and layer(torch.ones(3, 4) + 1e-3).isfinite().all()

@pytest.mark.parametrize("training", [True, False])
def test_asking_for_the_uncertainty_changes_nothing(training):
    encoder = gp_encoder(features="standardised").train(training)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    encoder.uncertainty(binary_images(20, seed=3))
    assert encoder.training == training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())

# --- 4. marginal and mixture ----------------------------------------------------------------------

def narrow_encoder():
    "Variance of f, of g, and the amortized variance all matter."
    encoder = gp_encoder()
    encoder.c.bias.data.sub_(2.5)
    r = encoder.functions(binary_images(3))
    part = r.f_var / r.marginal_var()
    assert (part > 0.05).all() and (part < 0.8).all() and (r.g_var > 0.1).all()
    return encoder

def test_marginal_moments_are_those_of_the_mixture():
    encoder = narrow_encoder()
    x, K = binary_images(3), 100_000
    phi = encoder.trunk(x)
    b, c, psi = encoder.b(phi), encoder.c(phi), encoder.features(phi)
    f, g = b + psi @ encoder.W.sample(K, seeded(0)).mT, c + psi @ encoder.U.sample(K, seeded(1)).mT
    z = f + g.exp() * torch.randn(f.shape, generator=seeded(2), dtype=F64)
    q = encoder.functions(x).marginal()
    for i in range(3):
        for j in range(Z):
            assert_zero((z - q.mu)[:, i, j], 4.5)
            assert_zero(((z - q.mu).square() - torch.exp(2 * q.log_sigma))[:, i, j], 4.5)

def test_marginal_covariance_of_a_correlated_encoder_is_that_of_its_draws():
    "And its doubt goes by the precision, which is never below one over the variance."
    encoder, x, K = gp_encoder(z_dim=3, correlated=True).eval(), binary_images(2), 200_000
    phi, r, q = encoder.trunk(x), encoder.functions(x), encoder(x)
    b, c, psi, unit = encoder.b(phi), encoder.c(phi), encoder.features(phi), encoder.T(phi)
    assert ((unit.diagonal(dim1=1, dim2=2) == 1).all() and (unit.triu(1) == 0).all()
            and unit.tril(-1).abs().max() > 0.1)
    f, g = b + psi @ encoder.W.sample(K, seeded(0)).mT, c + psi @ encoder.U.sample(K, seeded(1)).mT
    noise = torch.randn(f.shape, generator=seeded(2), dtype=F64)
    off = f + g.exp() * torch.einsum("bij,kbj->kbi", unit, noise) - q.mean
    cov, products = q.L @ q.L.mT, off[..., :, None] * off[..., None, :]
    for i in range(2):
        for j in range(3):
            for k in range(3):
                assert_zero((products - cov)[:, i, j, k], 4.5)
    close(r.marginal_var(), cov.diagonal(dim1=1, dim2=2))
    relative = (r.f_var * torch.linalg.inv(cov).diagonal(dim1=1, dim2=2)).sum(1)
    close(r.uncertainty().f_relative, relative)
    assert ((r.f_var / r.marginal_var()).sum(1) < relative).all() and (relative < 3).all()

def test_mixture_components_are_draws_of_the_functions():
    encoder = gp_encoder(n_mixture=20_000, mode="mixture").eval()
    x = binary_images(2)
    q, r = encoder(x), encoder.functions(x)
    for mean, var, value in ((r.f_mean, r.f_var, q.mu), (r.g_mean, r.g_var, q.log_sigma)):
        assert_zero((value - mean)[:, 0, 0])
        assert_zero(((value - mean).square() - var)[:, 1, 1])
    close(q.log_pi.exp().sum(0), torch.ones(2, dtype=F64))

def trained(model, x, steps=100):
    "A few steps towards the bound, enough for a decoder that uses its latents."
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    torch.manual_seed(0)
    for _ in range(steps):
        loss = -model.train().elbo(x).mean() + model.weight_kl_per_image(len(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()

def test_strata_give_the_mixture_bound():
    """The bound from every component, weighted, is that of samples of the mixture; components and weights are
    far from equal."""
    lg = LinearGaussian()
    x = lg.images(3).repeat(500, 1, 1, 1)
    mu = lg.mean(x) + torch.tensor([[[0.]], [[0.5]], [[-1.]]], dtype=F64)
    q = GaussianMixture(mu, torch.full_like(mu, -0.5),
                        torch.tensor([0.7, 0.2, 0.1], dtype=F64).log()[:, None].expand(3, len(x)))
    model = lg.model(lambda x: q)
    z, log_qz_x = q.rsample_and_log_prob(200, seeded(1))
    sampled = (model.log_joint(x, z) - log_qz_x).mean(0).reshape(500, 3).mean(0)
    strata = model.elbo(x, 40, seeded(2)).detach().reshape(500, 3)
    assert ((strata.mean(0) - sampled).abs() < 5 * 2**0.5 * strata.std(0) / 500**0.5).all()

def test_mixture_bound_is_above_its_components():
    x = binary_images(64)
    model = trained(bernoulli_model(gp_encoder(mode="mixture", n_mixture=5, init_scale=1.)), x)
    repeats = x.repeat(8, 1, 1, 1)
    with torch.no_grad():
        q = model.posterior(repeats)
        components = [DiagonalGaussian(mu, log_sigma) for mu, log_sigma in zip(q.mu, q.log_sigma)]
        of_one = torch.stack([VAE(Call(lambda x, c=c: c), model.decoder, model.likelihood).elbo(repeats, 40,
                                                                                                seeded(i))
                              for i, c in enumerate(components)]).mean(0)
        of_all = model.elbo(repeats, 200, seeded(9))
    gain = (of_all - of_one).reshape(8, 64).mean(0)
    assert_positive(gain, 5)
    assert gain.mean() < math.log(5) # the most that the choice of a component can be worth
