"""Flows against the Jacobian of automatic differentiation, materialised matrices and torch's distributions.
All in float64."""
import math
from dataclasses import replace

import pytest
import torch
from torch.autograd.functional import jacobian

from gpvae.encoders.householder import HouseholderEncoder, reflect, _unit
from gpvae.encoders.iaf import AutoregressiveFlow, IAFEncoder, _MaskedNetwork, _positions, _masks
from gpvae.evaluation.iwae import estimate_batch
from gpvae.networks import mlp_trunk
from gpvae.posteriors import DiagonalGaussian, log_normal
from gpvae.study.config import RunSpec
from gpvae.study.methods import METHODS
from models import build_model
from toys import F64, assert_zero, bernoulli_model, binary_images, perturb, seeded

SHAPE = (1, 4, 4)
MVN = torch.distributions.MultivariateNormal

def close(a, b, tol=1e-10): torch.testing.assert_close(a, b, rtol=tol, atol=tol)

def encoder_of(cls, z_dim=4, scale=0.3, **options):
    "A small encoder, every parameter moved from its start."
    torch.manual_seed(0)
    return perturb(cls(mlp_trunk(SHAPE, (8, 8)), 8, z_dim, **options).double(), scale)

def iaf(flows, z_dim=4, scale=0.3, **options):
    return encoder_of(IAFEncoder, z_dim, scale, flows=flows,
                      **{"flow_width": 12, "context_width": 5} | options)
def hf(reflections, z_dim=4, scale=0.3):
    return encoder_of(HouseholderEncoder, z_dim, scale, reflections=reflections)

def map_of(q):
    "eps [Z] -> z [Z] of the first image: what a sample goes through."
    push = (lambda z: q.push(z)[0]) if hasattr(q, "push") else q.turn
    return lambda eps: push((q.base.mu + q.base.log_sigma.exp() * eps)[None])[0, 0]

# --- inverse autoregressive flow ------------------------------------------------------------------

@pytest.mark.parametrize("z_dim, width", [(1, 3), (2, 2), (5, 5), (5, 12), (12, 5)])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_path_leads_from_every_earlier_latent_and_from_no_other(z_dim, width, reverse):
    inward, outward = _masks(z_dim, width, reverse)
    seen, place = outward.int() @ inward.int() > 0, _positions(z_dim, reverse)
    earlier = place < place[:, None]
    assert not (seen & ~earlier).any()
    if width >= z_dim:
        assert torch.equal(seen, earlier)

@pytest.mark.parametrize("reverse", [False, True])
def test_jacobian_of_a_step_is_triangular_in_its_order(reverse):
    h = torch.randn(1, 3, generator=seeded(), dtype=F64)
    step = perturb(_MaskedNetwork(5, 3, 12, reverse, 1.).double(), 0.5)(h)
    z = torch.randn(5, generator=seeded(1), dtype=F64)
    J = jacobian(lambda z: step(z[None, None])[0][0, 0], z)
    J = J.flip(0, 1) if reverse else J
    assert (J.triu(1) == 0).all() and (J[tuple(torch.tril_indices(5, 5, -1))] != 0).all()
    assert ((J.diagonal() > 0) & (J.diagonal() < 1)).all()
    close(step(z[None, None])[1][0, 0], J.diagonal().log()[list(step.order)])

@pytest.mark.parametrize("flows", [1, 2, 4])
def test_density_of_a_sample_is_that_of_the_jacobian(flows):
    q, eps = iaf(flows)(binary_images(1)), torch.randn(4, generator=seeded(), dtype=F64)
    z = map_of(q)(eps)
    expected = log_normal(eps) - jacobian(map_of(q), eps).slogdet().logabsdet
    close(q.log_prob(z[None, None])[0, 0], expected, 1e-8)
    z, log_qz_x = q.rsample_and_log_prob(1, seeded())
    close(log_qz_x[0, 0], expected) # the same noise
    close(z[0, 0], map_of(q)(eps))

@pytest.mark.parametrize("flows", [1, 2, 4, 8])
def test_density_of_samples_is_the_density_evaluated_there(flows):
    z, log_qz_x = (q := iaf(flows)(binary_images(7))).rsample_and_log_prob(50, seeded())
    close(q.log_prob(z), log_qz_x, 1e-8)

def test_the_order_is_reversed_from_step_to_step():
    "One step leaves the first latent to the image alone; with two, every latent depends on every other."
    J = {flows: jacobian(map_of(iaf(flows)(binary_images(1))), torch.zeros(4, dtype=F64)) for flows in (1, 2)}
    assert (J[1].triu(1) == 0).all() and (J[2] != 0).all()
    assert [step.order for step in iaf(3)(binary_images(1)).steps] == [(0, 1, 2, 3), (3, 2, 1, 0),
                                                                       (0, 1, 2, 3)]

@pytest.mark.parametrize("flows", [1, 8])
def test_new_steps_are_nearly_a_diagonal_gaussian(flows):
    torch.manual_seed(0)
    encoder = IAFEncoder(mlp_trunk(SHAPE, (8, 8)), 8, 4, flows=flows, flow_width=40, forget_bias=2.).double()
    q = encoder(binary_images(5))
    (first, _), (z, log_qz_x) = (q.rsample_and_log_prob(3000, seeded(i)) for i in range(2))
    gaussian = DiagonalGaussian(first.mean(0), first.std(0).log())
    assert ((log_qz_x - gaussian.log_prob(z)).mean(0) < 0.02).all()
    close(first.std(0), q.base.log_sigma.exp() / (1 + math.exp(-2)) ** flows, 0.1)

def test_an_open_gate_is_the_base():
    torch.manual_seed(0)
    q = IAFEncoder(mlp_trunk(SHAPE, (8, 8)), 8, 4, flows=4, forget_bias=40.).double()(binary_images(5))
    for a, b in zip(q.rsample_and_log_prob(10, seeded()), q.base.rsample_and_log_prob(10, seeded())):
        close(a, b)
    close(q.mean, q.base.mu)

def test_one_latent():
    "Nothing stands before the only latent: the flow is affine, with gates chosen by the image."
    q = iaf(3, z_dim=1)(binary_images(2))
    z, log_qz_x = q.rsample_and_log_prob(1000, seeded())
    close(q.log_prob(z), log_qz_x, 1e-8)
    scale = torch.stack([jacobian(map_of(iaf(3, z_dim=1)(x[None])), torch.zeros(1, dtype=F64))[0, 0]
                         for x in binary_images(2)])
    close(q.log_prob(z), DiagonalGaussian(q.mean, scale.log()[:, None]).log_prob(z), 1e-8)

def test_points_out_of_reach_have_no_density():
    far = torch.full((1, 3, 4), 1e200, dtype=F64)
    assert (iaf(4)(binary_images(3)).log_prob(far) == -math.inf).all()

def test_mean_of_many_pairs_and_of_an_affine_flow():
    q = iaf(4)(binary_images(5))
    z = q.rsample_and_log_prob(20_000, seeded())[0]
    error, sd = (replace(q, mean_samples=10_000).mean - z.mean(0)).abs(), z.std(0)
    assert (error < 5 * sd * (1 / 20_000 + 1 / 10_000) ** 0.5).all()
    assert ((q.mean - z.mean(0)).abs() < 5 * sd / q.mean_samples**0.5).all() and torch.equal(q.mean, q.mean)
    encoder = iaf(4)
    for network in encoder.networks:
        network.outward.weight.data.zero_()
    q = encoder(binary_images(5))
    close(q.mean, replace(q, mean_samples=1000).mean) # one pair is enough for an affine map
    assert (q.mean - q.base.mu).abs().min() > 1e-3

def test_mean_is_computed_only_when_asked_for(monkeypatch):
    def refuse(self): raise AssertionError("the mean was computed")
    monkeypatch.setattr(AutoregressiveFlow, "mean", property(refuse))
    q = iaf(2)(binary_images(5))
    z, _ = q.rsample_and_log_prob(2)
    q.log_prob(z)
    q.inflate(2.)

def both_estimates(encoder):
    "The plain estimate of the KL of one image and the less noisy one, from the same noise."
    q = encoder(binary_images(1).expand(20_000, -1, -1, -1))
    (z, log_qz_x), (same, weight, kl) = q.rsample_and_log_prob(1, seeded()), q.rsample_and_kl(1, seeded())
    assert torch.equal(z, same) and weight is None
    return (log_qz_x - log_normal(z))[0].detach(), kl.detach()

@pytest.mark.parametrize("flows", [1, 4])
def test_estimate_of_the_kl(flows):
    """Its mean is that of the density over the prior, its noise is small where the flow bends little, and an
    affine flow has a closed form."""
    plain, kl = both_estimates(iaf(flows))
    assert_zero(kl - plain)
    plain, kl = both_estimates(encoder := iaf(flows, scale=0.1))
    assert kl.std() < 0.2 * plain.std()
    for network in encoder.networks:
        network.outward.weight.data.zero_()
    q = encoder(binary_images(3))
    affine = DiagonalGaussian(q.mean, q.base.log_sigma + q.push(q.base.mu[None])[1][0])
    close(q.rsample_and_kl(2, seeded())[-1], affine.kl())

def test_the_bound_uses_the_estimate():
    model, x = bernoulli_model(iaf(2), 4), binary_images(5)
    terms, (z, _, kl) = model.terms(x, 3, seeded()), model.posterior(x).rsample_and_kl(3, seeded())
    close(terms.kl, kl)
    close(terms.log_px_z, model.log_px_z(x, z).mean(0))

def test_the_context_is_computed_once_an_image():
    model, x, rows = bernoulli_model(iaf(3), 4), binary_images(5), []
    for network in model.encoder.networks:
        network.context.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    estimate_batch(model, x, 1000, rows=100)
    assert rows == [5] * 3

# --- Householder flow -----------------------------------------------------------------------------

def matrix(q):
    "H [B, Z, Z], from the images of the unit vectors."
    B, Z = q.base.mu.shape
    return q.turn(torch.eye(Z, dtype=F64)[:, None].expand(Z, B, Z)).permute(1, 2, 0)

def full(q):
    H = matrix(q)
    return MVN((H @ q.base.mu[..., None])[..., 0], H @ torch.diag_embed((2 * q.base.log_sigma).exp()) @ H.mT)

def test_a_reflection_is_the_matrix():
    v = torch.randn(7, 4, generator=seeded(), dtype=F64)
    z = torch.randn(20, 7, 4, generator=seeded(1), dtype=F64)
    H = torch.eye(4, dtype=F64) - 2 * v[:, :, None] * v[:, None] / v.square().sum(1)[:, None, None]
    close(reflect(z, _unit(v)), torch.einsum("bij,sbj->sbi", H, z))

@pytest.mark.parametrize("reflections", [1, 2, 4, 8])
def test_the_map_is_orthogonal_and_undone(reflections):
    q = hf(reflections)(binary_images(7))
    H, z = matrix(q), torch.randn(20, 7, 4, generator=seeded(), dtype=F64)
    close(H @ H.mT, torch.eye(4, dtype=F64).expand(7, 4, 4))
    close(H.det(), torch.full((7,), (-1.) ** reflections, dtype=F64))
    close(q.turn(z).square().sum(-1), z.square().sum(-1))
    close(q.turn_back(q.turn(z)), z)
    assert (H[0] - H[1]).abs().max() > 0.01 # images choose their rotations

@pytest.mark.parametrize("reflections", [1, 2, 4, 8])
def test_it_is_the_full_gaussian(reflections):
    q = hf(reflections)(binary_images(7))
    z, log_qz_x = q.rsample_and_log_prob(50, seeded())
    close(q.log_prob(z), log_qz_x)
    close(log_qz_x, full(q).log_prob(z))
    close(q.log_prob(z + 1), full(q).log_prob(z + 1))
    close(q.mean, full(q).mean)

@pytest.mark.parametrize("reflections", [1, 4])
def test_kl_is_that_of_the_full_gaussian(reflections):
    q = hf(reflections)(binary_images(7))
    close(q.kl(),
          torch.distributions.kl_divergence(full(q), MVN(torch.zeros(4, dtype=F64), torch.eye(4, dtype=F64))))

def test_covariance_of_samples():
    q = hf(4)(binary_images(2))
    z = q.rsample_and_log_prob(100_000, seeded())[0]
    e, expected = z - q.mean, full(q).covariance_matrix
    for b in range(2):
        for i in range(4):
            for j in range(i + 1):
                assert_zero(e[:, b, i] * e[:, b, j] - expected[b, i, j], 4.5)
    sigma = expected.diagonal(dim1=1, dim2=2).sqrt()
    correlation = expected / sigma[:, :, None] / sigma[:, None]
    assert correlation.tril(-1).abs().max() > 0.1

@pytest.mark.parametrize("length", [0., 1e-300, 1e-11, 1., 1e100])
def test_vectors_of_any_length(length):
    v = (length * torch.randn(3, 4, generator=seeded(), dtype=F64)).requires_grad_()
    z = torch.randn(5, 3, 4, generator=seeded(1), dtype=F64)
    turned = reflect(z, _unit(v))
    close(turned.square().sum(-1), z.square().sum(-1))
    turned.sum().backward()
    assert v.grad.isfinite().all() and torch.equal(turned.detach(), z) == (length < 1e-12)

def test_each_vector_is_linear_in_the_one_before():
    encoder, x = hf(3), binary_images(7)
    v = encoder.trunk(x)
    for A, u in zip(encoder.vectors, encoder(x).u):
        v = v @ A.weight.T + A.bias
        close(u, v / v.norm(dim=1, keepdim=True))

# --- both -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("encoder", [iaf(2), hf(2)], ids=["iaf", "hf"])
def test_inflation_is_of_the_base_variance(encoder):
    q = encoder(binary_images(3))
    wide = q.inflate(4.)
    assert type(wide) is type(q)
    close(wide.base.log_sigma, q.base.log_sigma + math.log(2))
    close(wide.base.mu, q.base.mu)
    close(replace(wide, base=q.base).log_prob(q.mean[None]), q.log_prob(q.mean[None]))

def test_the_numbers_of_the_names():
    for name in METHODS:
        if name.startswith(("iaf-", "hf-")):
            encoder = build_model(RunSpec(method=name, z_dim=3, likelihood="bernoulli",
                                          settings=(("hidden", (8,)), ("network", "mlp"))), SHAPE).encoder
            steps = encoder.networks if name.startswith("iaf") else encoder.vectors
            assert len(steps) == int(name.split("-")[1])
