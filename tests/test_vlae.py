"""Variational Laplace: the local model against autograd, the solve and its gradient, exactness where the
decoder is linear. All in float64."""
import pytest
import torch
from torch import nn

from gpvae.encoders.laplace import (_Gram, LaplaceEncoder, _layers_of, laplace, linearise, newton_step,
                                    precision)
from gpvae.checks import InputError
from gpvae.evaluation.iwae import estimate_batch
from gpvae.likelihoods import LIKELIHOODS
from gpvae.networks import ConvDecoder, mlp_decoder, mlp_trunk
from gpvae.posteriors import FullGaussian
from gpvae.vae import VAE, LogJoint
from toys import F64, LinearGaussian, assert_positive, binary_images, perturb, seeded

SHAPE, Z = (1, 4, 4), 3
hessian, jacobian = torch.autograd.functional.hessian, torch.autograd.functional.jacobian

def close(a, b, tol=1e-10): torch.testing.assert_close(a, b, rtol=tol, atol=tol)

def encoder(shape=SHAPE, z_dim=Z, seed=0, **options):
    torch.manual_seed(seed)
    return perturb(LaplaceEncoder(mlp_trunk(shape, (8, 6)), 6, z_dim, **options).double(), 0.3, seed)

def model_of(likelihood="bernoulli", seed=0, **options):
    "Two hidden layers whose units are partly on, and every parameter moved from its start."
    torch.manual_seed(seed)
    decoder = perturb(mlp_decoder(Z, SHAPE, (9, 7)).double(), 0.4, seed)
    return VAE(encoder(seed=seed, **options), decoder,
               perturb(LIKELIHOODS[likelihood](16).double(), 0.5, seed))

def local_of(model, n=4, seed=1):
    "Points, the images there, and the decoder around them."
    mu = torch.randn(n, Z, generator=seeded(seed), dtype=F64)
    return mu, LogJoint(model, binary_images(n)), _layers_of(model.decoder)

def each(log_joint, mu, function):
    "A derivative of log p(x, z) in z, image by image, by autograd."
    return torch.stack([function(lambda z: log_joint.model.log_joint(x[None], z[None, None])[0, 0], m)
                        for x, m in zip(log_joint.x, mu)])

@pytest.fixture(params=LIKELIHOODS)
def likelihood(request): return request.param

# --- the likelihoods' derivatives and the decoder's -----------------------------------------------

def test_score_and_curvature_are_derivatives(likelihood):
    like = perturb(LIKELIHOODS[likelihood](6).double(), 0.5)
    eta, x = (2 * torch.randn(3, 4, 6, generator=seeded(), dtype=F64),
              torch.rand(4, 6, generator=seeded(1), dtype=F64))
    eta.requires_grad_()
    first, = torch.autograd.grad(like.log_px_z(eta, x).sum(), eta, create_graph=True)
    close(like.score(eta, x), first)
    second = torch.stack([torch.autograd.grad(first[..., d].sum(), eta, retain_graph=True)[0]
                          for d in range(6)], -1)
    close(torch.diag_embed(like.curvature(eta)), -second)

def test_curvature_keeps_its_digits_and_its_gradient():
    eta = torch.tensor([-80., 80.], requires_grad=True)
    curvature = LIKELIHOODS["bernoulli"](2).curvature(eta)
    torch.testing.assert_close(curvature, torch.exp(-eta.abs()), rtol=1e-5, atol=0)
    assert torch.autograd.grad(curvature.sum(), eta)[0].isfinite().all()

def test_jacobian_is_autograds():
    model = model_of()
    mu, _, layers = local_of(model)
    local = linearise(layers, mu)
    assert all(0 < mask.mean() < 1 for mask in local.masks) and len(local.masks) == 2
    J = torch.stack([jacobian(model.decoder, m) for m in mu])
    r = torch.randn(4, 16, generator=seeded(), dtype=F64)
    close(local.eta, model.decoder(mu))
    close(local.push(torch.eye(Z, dtype=F64)[None]), J.mT)
    close(local.pull(r), torch.einsum("bdz,bd->bz", J, r))

def test_precision_is_the_curvature_of_the_joint(likelihood):
    "Second derivatives of log p(x, z) itself: the ReLUs add none, the prior adds the identity."
    model = model_of(likelihood)
    mu, log_joint, layers = local_of(model)
    local = linearise(layers, mu)
    Lambda = precision(local, model.likelihood.curvature(local.eta))
    close(Lambda, -each(log_joint, mu, hessian))
    close(Lambda, Lambda.mT)
    assert (torch.linalg.eigvalsh(Lambda) >= 1 - 1e-9).all()

def test_gram_states_its_derivative():
    J, c = (torch.randn(4, Z, 5, generator=seeded(), dtype=F64, requires_grad=True),
            torch.rand(4, 5, generator=seeded(1), dtype=F64, requires_grad=True))
    close(_Gram.apply(J, c), torch.einsum("bid,bd,bjd->bij", J, c, J))
    weight = torch.randn(4, Z, Z, generator=seeded(2), dtype=F64)
    plain = torch.autograd.grad((torch.einsum("bid,bd,bjd->bij", J, c, J) * weight).sum(), (J, c))
    for a, b in zip(torch.autograd.grad((_Gram.apply(J, c) * weight).sum(), (J, c)), plain):
        close(a, b)

# --- the solve ------------------------------------------------------------------------------------

def plain_step(model, x, mu):
    "The solve for one image with nothing but autograd."
    joint = lambda z: model.log_joint(x[None], z[None, None])[0, 0]
    eta_of = lambda z: model.decoder(z)
    J = jacobian(eta_of, mu, create_graph=True)
    curvature = model.likelihood.curvature(eta_of(mu))
    g = jacobian(joint, mu, create_graph=True)
    return torch.linalg.solve(torch.eye(Z, dtype=F64) + J.T @ (curvature[:, None] * J), g)

def test_step_is_the_newton_step(likelihood):
    model = model_of(likelihood)
    mu, log_joint, layers = local_of(model)
    expected = torch.linalg.solve(-each(log_joint, mu, hessian), each(log_joint, mu, jacobian))
    close(newton_step(log_joint, layers, mu), expected)

def test_gradient_through_the_solve_is_autograds(likelihood):
    model = model_of(likelihood)
    mu, log_joint, layers = local_of(model)
    weight, mu = torch.randn(4, Z, generator=seeded(3), dtype=F64), mu.requires_grad_()
    wrt = [mu, *model.decoder.parameters(), *model.likelihood.parameters()]
    plain = torch.stack([plain_step(model, x, m) for x, m in zip(log_joint.x, mu)])
    expected = torch.autograd.grad((plain * weight).sum(), wrt)
    for a, b in zip(torch.autograd.grad((newton_step(log_joint, layers, mu) * weight).sum(), wrt), expected):
        close(a, b, 1e-8)

def test_short_steps_climb_the_joint(likelihood):
    model = model_of(likelihood)
    mu, log_joint, layers = local_of(model, 200)
    with torch.no_grad():
        assert (log_joint((mu + 1e-4 * newton_step(log_joint, layers, mu))[None]) > log_joint(mu[None])).all()

# --- the posterior --------------------------------------------------------------------------------

def test_factor_of_the_covariance():
    A = torch.randn(5, 4, 6, generator=seeded(), dtype=F64)
    Lambda = torch.eye(4, dtype=F64) + A @ A.mT
    L = FullGaussian.of_precision(torch.zeros(5, 4, dtype=F64), Lambda).L
    close(L @ L.mT, torch.linalg.inv(Lambda))
    assert torch.equal(L, L.tril()) and (L.diagonal(dim1=1, dim2=2) > 0).all()

def test_covariance_belongs_to_the_last_mean(likelihood):
    model = model_of(likelihood, n_solves=2)
    q = model.posterior(binary_images(4))
    close(q.L @ q.L.mT, torch.linalg.inv(-each(LogJoint(model, binary_images(4)), q.mean.detach(), hessian)))

@pytest.mark.parametrize("n_solves", [1, 3])
def test_exact_on_a_linear_gaussian_decoder(n_solves):
    lg = LinearGaussian()
    x = lg.images(5)
    model = VAE(encoder(tuple(x.shape[1:]), 2, n_solves=n_solves, damping=1.), lg.decoder, lg.likelihood)
    q = model.posterior(x)
    close(q.mean, lg.mean(x))
    close(q.L @ q.L.mT, lg.cov.expand(5, 2, 2))
    z, log_qz_x = q.rsample_and_log_prob(50, seeded())
    close(model.log_joint(x, z) - log_qz_x, lg.log_px(x).expand(50, -1))
    with torch.no_grad():
        r = estimate_batch(model, x, 50)
    close(r.iwae, lg.log_px(x))
    close(r.elbo, lg.log_px(x))
    close(r.ess, torch.full_like(r.ess, 50))

@pytest.mark.parametrize("n_solves, damping, left",
                         [(1, 0.5, 0.5), (2, 0.5, 0.5 * 0.75), (3, 0.6, 0.4 * 0.7 * 0.8)])
def test_damping_decays(n_solves, damping, left):
    "Where the local model is exact, what is left of the way is the product of 1 − α_t."
    lg = LinearGaussian()
    x = lg.images(5)
    model = VAE(encoder(tuple(x.shape[1:]), 2, n_solves=n_solves, damping=damping), lg.decoder, lg.likelihood)
    start = model.encoder.b(model.encoder.trunk(x))
    assert (start - lg.mean(x)).abs().max() > 0.5
    close(model.posterior(x).mean - lg.mean(x), left * (start - lg.mean(x)))

def test_refinement_raises_the_bound():
    model, x = model_of(), binary_images(200)
    start = model.encoder.b(model.encoder.trunk(x))
    with torch.no_grad():
        before = laplace(LogJoint(model, x), _layers_of(model.decoder), start)
        bounds = [model.terms_of(q, x, 100, seeded()).elbo() for q in (before, model.posterior(x))]
    assert_positive(bounds[1] - bounds[0], 5)

def test_the_mean_trains_decoder_and_scale_through_the_solve():
    model = model_of("gaussian")
    model.posterior(binary_images(8)).mean.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name

def test_training_and_evaluation_agree():
    model, x = model_of(n_solves=2), binary_images(4)
    trained, q = model.train().posterior(x), model.eval().posterior(x)
    with torch.inference_mode():
        inferred = model.posterior(x)
    for a in (trained, inferred):
        assert torch.equal(a.mean, q.mean) and torch.equal(a.L, q.L)

def test_saturated_pixels_leave_finite_numbers():
    "In float32, with logits so large that most curvatures are zero."
    model = model_of().float()
    for p in model.decoder.parameters():
        p.data.mul_(20)
    x = binary_images(50, dtype=torch.float32)
    model.elbo(x).mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())

# --- what is refused ------------------------------------------------------------------------------

@pytest.mark.parametrize("decoder, name",
                         [(ConvDecoder(Z, (1, 8, 8)), "ConvDecoder"),
                          (nn.Sequential(nn.Linear(Z, 4), nn.Tanh(), nn.Linear(4, 64)), "Tanh")])
def test_other_decoders_are_refused(decoder, name):
    with pytest.raises(InputError, match=f"Linear and ReLU layers.*{name}.*network='mlp'"):
        VAE(encoder((1, 8, 8)), decoder, LIKELIHOODS["bernoulli"](64))
