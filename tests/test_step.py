"""The natural-gradient step: exact where it can be, whose mean it moves and by what, and runs that are judged
with it."""
import dataclasses

import pytest
import torch
from torch.autograd.functional import hessian

from gpvae.encoders.full_covariance import LowRankGaussian
from gpvae.encoders.householder import HouseholderGaussian
from gpvae.checks import InputError
from gpvae.posteriors import DiagonalGaussian, FullGaussian, GaussianMixture
from gpvae.encoders.natural_step import gradient_at_mean, with_natural_step
from gpvae.vae import VAE, LogJoint, evaluating, log_weights
from toys import F64, LinearGaussian, Call, bernoulli_model, binary_images, gp_encoder, seeded

close = torch.testing.assert_close

def far_off(lg, L):
    "A model whose encoder has the right covariance, or another, and the mean (1, -1) for every image."
    def q(x):
        return FullGaussian(torch.tensor([[1., -1.]], dtype=F64).expand(len(x), 2), L.expand(len(x), 2, 2))
    return VAE(Call(q), lg.decoder, lg.likelihood).eval()

@pytest.mark.parametrize("factor", [1., 0.3])
def test_the_step_is_newtons_where_the_covariance_is_right(factor):
    "With the posterior's covariance the error of the mean shrinks by 1 - η, from any mean."
    lg = LinearGaussian()
    x, model = lg.images(7), far_off(lg, torch.linalg.cholesky(lg.cov))
    q = with_natural_step(model, factor=factor).posterior(x)
    close(lg.mean(x) - q.mean, (1 - factor) * (lg.mean(x) - model.posterior(x).mean), atol=1e-10, rtol=0)

def test_after_a_whole_step_every_weight_is_the_likelihood():
    lg = LinearGaussian()
    x, model = lg.images(7), with_natural_step(far_off(lg, torch.linalg.cholesky(lg.cov)), factor=1.)
    with torch.no_grad():
        log_w = log_weights(model, x, model.posterior(x), 3, 100)
    close(log_w, lg.log_px(x).expand(3, 7))

def test_jacobi_with_a_diagonal_covariance():
    "Another covariance S leaves (I - ηSP)δ."
    lg, S = LinearGaussian(), torch.diag(torch.tensor([0.2, 0.1], dtype=F64))
    x, model = lg.images(7), far_off(lg, S.sqrt())
    left = (torch.eye(2) - 0.5 * S @ lg.cov.inverse()) @ (lg.mean(x) - model.posterior(x).mean).T
    close((lg.mean(x) - with_natural_step(model).posterior(x).mean).T, left)

def gaussians():
    g = seeded()
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=F64)
    L = draw(5, 3, 3).tril(-1) + torch.diag_embed(draw(5, 3).exp())
    u = torch.nn.functional.normalize(draw(2, 5, 3), dim=-1)
    diagonal = DiagonalGaussian(draw(5, 3), 0.3 * draw(5, 3))
    return [diagonal,
            FullGaussian(draw(5, 3), L),
            LowRankGaussian(draw(5, 3), 0.3 * draw(5, 3), draw(5, 3, 2)),
            HouseholderGaussian(diagonal, u)]

@pytest.mark.parametrize("q", gaussians(), ids=lambda q: type(q).__name__)
def test_a_gaussian_moves_along_its_own_covariance(q):
    """The covariance is read from the curvature of the log density; density and KL are those of the moved
    mean."""
    gradient = torch.randn(5, 3, generator=seeded(1), dtype=F64)
    moved = q.moved(gradient, 0.4)
    for i in range(5):
        at = lambda z: q.log_prob(z.expand(1, 5, 3))[0, i]
        cov = torch.linalg.inv(-hessian(at, q.mean[i].clone()))
        close(moved.mean[i], q.mean[i] + 0.4 * cov @ gradient[i])
    z = torch.randn(4, 5, 3, generator=seeded(2), dtype=F64)
    close(moved.log_prob(z), q.log_prob(z - moved.mean + q.mean))
    assert type(moved) is type(q)

def test_steps_follow_one_another():
    "Each from where the last one ended: two of η leave (1 - η)² of the error."
    lg = LinearGaussian()
    x, model = lg.images(7), far_off(lg, torch.linalg.cholesky(lg.cov))
    q = with_natural_step(model, factor=0.4, steps=2).posterior(x)
    close(lg.mean(x) - q.mean, 0.36 * (lg.mean(x) - model.posterior(x).mean))
    with pytest.raises(InputError, match="steps is 0"):
        with_natural_step(model, steps=0)

def test_a_mixture_says_that_it_takes_no_step():
    q = GaussianMixture(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3), torch.full((2, 5), 0.5).log())
    with pytest.raises(InputError, match="GaussianMixture takes no natural-gradient step"):
        q.moved(torch.zeros(5, 3), 0.5)

def test_the_gradient_is_each_images_own():
    "Of the sum over the batch: batches of one give the same."
    model, x = bernoulli_model(gp_encoder()).eval(), binary_images(5)
    q = model.posterior(x)
    together = gradient_at_mean(LogJoint(model, x), q)
    for i in range(5):
        alone = dataclasses.replace(q, mu=q.mu[i:i + 1], log_sigma=q.log_sigma[i:i + 1])
        close(gradient_at_mean(LogJoint(model, x[i:i + 1]), alone)[0], together[i])
    def log_joint(mu): return model.log_joint(x, mu[None]).sum()
    close(together, torch.autograd.functional.jacobian(log_joint, q.mu.detach()))

def test_training_is_the_start_alone():
    """Posterior, price of the weights and what the wrapper shows are the start's; nothing is copied, nothing
    is moved."""
    model, x = bernoulli_model(gp_encoder()), binary_images(5)
    after = with_natural_step(model).train()
    assert after.encoder.start is model.encoder and after.decoder is model.decoder
    posteriors = []
    for m in (model, after):
        torch.manual_seed(3)
        posteriors.append(m.train().posterior(x))
    assert all(torch.equal(a, b) for a, b in zip(vars(posteriors[0]).values(), vars(posteriors[1]).values()))
    assert torch.equal(after.encoder.weight_kl(), model.encoder.weight_kl()) and after.encoder.is_stochastic
    with evaluating(after):
        assert not torch.equal(after.posterior(x).mean, model.encoder(x).mean)

def test_nothing_is_left_in_the_decoder():
    model, x = bernoulli_model(gp_encoder()), binary_images(5)
    with evaluating(after := with_natural_step(model)):
        after.posterior(x)
    assert all(p.grad is None and p.requires_grad for p in model.decoder.parameters())

def test_the_factor_is_chosen_by_the_bound():
    """Where the covariance is right the whole step is best; where it is twenty times too wide only the
    shortest is any good."""
    lg = LinearGaussian()
    images = torch.rand(40, 1, 3, 2, generator=seeded(), dtype=F64)
    right, wide = (far_off(lg, c * torch.linalg.cholesky(lg.cov)) for c in (1., 20**0.5))
    assert with_natural_step(right, images, "floats").encoder.factor == 1.
    assert with_natural_step(wide, images, "floats").encoder.factor == 0.3

@pytest.mark.parametrize("wrong, words",
                         [(dict(factor=0.), "factor is 0.0"),
                          (dict(factor=1.5), "at most 1"),
                          (dict(x_valid=torch.zeros(0, 1, 3, 2, dtype=torch.uint8)),
                           "no images to choose by")])
def test_bad_input_is_one_line(wrong, words):
    with pytest.raises(InputError, match=words):
        with_natural_step(bernoulli_model(gp_encoder()), **wrong)

def test_inference_mode_is_refused_in_words():
    model = with_natural_step(bernoulli_model(gp_encoder())).eval()
    with torch.inference_mode(), pytest.raises(InputError, match="evaluate under torch.no_grad"):
        model.posterior(binary_images(3))
