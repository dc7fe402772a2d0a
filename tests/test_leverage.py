"Leverage, and the identity of the doubt: what a random last layer knows of an image, and what it cannot."


import numpy as np
import pytest
import torch
from torch import nn

from gpvae.encoders.full_covariance import FullEncoder
from gpvae.checks import InputError
from gpvae.encoders.gp import GPEncoder, RandomLinear
from gpvae.likelihoods import Bernoulli
from gpvae.networks import mlp_decoder, mlp_trunk
from gpvae.evaluation.scores import leverage
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.vae import VAE
from toys import Call, binary_images, gp_encoder, seeded

SHAPE = (1, 4, 4)

def images(n, seed=0): return (255 * (torch.rand(n, *SHAPE, generator=seeded(seed)) < 0.5)).byte()

def model_of(encoder=AmortizedEncoder):
    torch.manual_seed(0)
    return VAE(encoder(mlp_trunk(SHAPE, (12,)), 12, 3), mlp_decoder(3, SHAPE, (12,)), Bernoulli())

def test_batches_do_not_matter_and_nothing_is_left_behind():
    model = model_of(GPEncoder).train()
    before = torch.cat([v.flatten() for v in model.state_dict().values()])
    whole, parts = (leverage(model, images(50), images(9, 1), batch_size=b) for b in (500, 7))
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-4)
    assert model.training
    assert torch.equal(before, torch.cat([v.flatten() for v in model.state_dict().values()]))

def test_more_images_leave_less_variance():
    "Every direction of the features is seen once more: the variance of every image falls, to about a tenth."
    model = model_of()
    once, often = (leverage(model, images(40).repeat(n, 1, 1, 1), images(9, 1), prior_scale=100.)
                   for n in (1, 10))
    for name in once:
        assert (often[name] < once[name]).all()
        np.testing.assert_allclose(often[name], once[name] / 10, rtol=0.05)

def test_a_certain_prior_leaves_no_variance():
    found = leverage(model_of(), images(40), images(9, 1), prior_scale=1e-4)
    assert all((v < 1e-5).all() and (v > 0).all() for v in found.values())

def test_the_sum_over_training_images_is_the_number_of_weights():
    """The trace of a hat matrix: with a wide prior each latent has as many parameters as there are features
    that vary."""
    model = model_of()
    x = images(400)
    with torch.no_grad():
        features = torch.linalg.matrix_rank(
            nn.functional.normalize((phi := model.encoder.phi(x.float() / 255)) - phi.mean(0), dim=0)
        )
    found = leverage(model, x, x, prior_scale=1e3)["leverage"].sum()
    assert found == pytest.approx(3 * features.item(), rel=0.01)

@pytest.mark.parametrize("encoder, words",
                         [(FullEncoder, "FullEncoder returns a FullGaussian"),
                          (lambda *_: Call(lambda x: model_of().encoder(x)),
                           "Call returns a DiagonalGaussian")])
def test_encoders_without_features_or_with_other_posteriors_are_refused(encoder, words):
    with pytest.raises(InputError, match=words):
        leverage(model_of(encoder), images(20), images(3))

@pytest.mark.parametrize("call, words",
                         [(lambda m, x: leverage(m, x[:0], x), "no images"),
                          (lambda m, x: leverage(m, x, x[:0]), "no images"),
                          (lambda m, x: leverage(m, x, x, prior_scale=0.), "prior_scale is 0"),
                          (lambda m, x: leverage(m, x.float(), x), "between 0 and 1")])
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call(model_of(), images(6))

# --- the identity of the doubt --------------------------------------------------------------------

@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_effective_weights_are_the_trace_of_what_the_data_decide(covariance):
    layer = RandomLinear(4, 3, covariance, prior_scale=0.7, init_scale=0.3).double()
    g = seeded()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    L = layer.cov.colour(torch.eye(4, dtype=torch.float64)[:, None].expand(4, 3, 4)).permute(1, 2, 0)
    shares = torch.eye(4, dtype=torch.float64) - L @ L.mT / layer.log_prior.mul(2).exp()[:, None, None]
    assert layer.effective().item() == pytest.approx(shares.diagonal(dim1=1, dim2=2).sum().item())
    assert RandomLinear(4, 3, "none").effective() == 0

@pytest.mark.parametrize("tau, N", [(1., 50), (4., 50), (1., 5)])
def test_the_doubt_at_the_optimum_counts_weights(tau, N):
    """With a quadratic bound the best Σ has the doubt γ/2τN, whatever the curvature and however large the
    error of the mean."""
    layer = RandomLinear(6, 2, init_scale=0.3).double()
    psi = torch.randn(40, 6, generator=seeded(), dtype=torch.float64)
    h = torch.tensor([3., 70.], dtype=torch.float64)
    optimizer = torch.optim.LBFGS([layer.cov.log_scale], max_iter=500, tolerance_grad=1e-12,
                                  line_search_fn="strong_wolfe")
    doubt = lambda: 0.5 * (h * layer.cov.var(psi)).sum(1).mean()
    def closure():
        optimizer.zero_grad()
        loss = doubt() + layer.kl() / (tau * N) # the mean stays at zero, far from any answer
        loss.backward()
        return loss
    optimizer.step(closure)
    assert doubt().item() == pytest.approx((layer.effective() / (2 * tau * N)).item(), rel=1e-3)
    assert 0 < layer.effective() < 12

# --- heat: the doubt on another scale -------------------------------------------------------------

@pytest.mark.parametrize("covariance", ["diagonal", "full", "none"])
def test_a_heated_copy_has_the_variance_times_the_factor(covariance):
    "And the same mean functions; the original is as it was."
    encoder = gp_encoder(covariance=covariance).eval()
    if covariance == "full":
        encoder.W.cov.lower.data.normal_(generator=seeded(2))
    x, before = binary_images(5), torch.cat([v.double().flatten() for v in encoder.state_dict().values()])
    hot = encoder.scale_variance(6.5)
    a, b = encoder.functions(x), hot.functions(x)
    torch.testing.assert_close((b.f_var, b.g_var), (6.5 * a.f_var, 6.5 * a.g_var))
    torch.testing.assert_close((b.f_mean, b.g_mean), (a.f_mean, a.g_mean))
    assert torch.equal(before, torch.cat([v.double().flatten() for v in encoder.state_dict().values()]))
    with pytest.raises(InputError, match="factor is 0"):
        encoder.scale_variance(0)

def test_doubt_in_nats():
    u = gp_encoder().eval().uncertainty(binary_images(5))
    torch.testing.assert_close(u.nats, u.f_relative / 2 + u.g)
