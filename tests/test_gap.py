"Gaps against references with a known answer, their table, and the scores that should rank them."
import numpy as np
import pytest
import torch

from gpvae.evaluation.ais import AISConfig
from gpvae.checks import InputError
from gpvae.evaluation.gap import PARTS, Gaps, gap_table, iwae_by_width, measure_gaps
from gpvae.evaluation.iwae import evaluate
from gpvae.inference.best_gaussian import Climb
from gpvae.posteriors import DiagonalGaussian
from gpvae.statistics import auroc, bootstrap, mean_error, spearman
from gpvae.evaluation.scores import best_score, by_decile, decile_edges, free_scores, noised, scores, turned
from toys import Call, LinearGaussian, bernoulli_model, gp_encoder, seeded

class Bytes(LinearGaussian):
    "The linear-Gaussian model on images that are stored as bytes."
    def bytes(self, n): return (255 * self.images(n).clamp(0, 1)).byte()
    def off(self, x): return self.rough(x, shift=0.5, width=2.)

CLIMB = Climb(steps=400)

def test_the_best_gaussians_leave_what_is_known():
    """Full: nothing. Diagonal: the KL of the best diagonal Gaussian, ½[Σ log Λ_jj − log det Λ]. The encoder:
    that and its own KL."""
    lg = Bytes()
    x = lg.bytes(4)
    pixels = x.double() / 255
    gaps = measure_gaps(lg.model(lg.off), x, AISConfig(temperatures=20, chains=4), CLIMB, "none",
                        samples=40_000)
    precision = torch.linalg.inv(lg.cov)
    missing = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()
    assert missing > 0.05
    np.testing.assert_allclose(gaps.full, lg.log_px(pixels).numpy(), atol=0.03)
    np.testing.assert_allclose(lg.log_px(pixels).numpy() - gaps.diagonal, missing, atol=0.06)
    np.testing.assert_allclose(gaps.amortization, lg.gap(pixels, lg.off(pixels)).numpy() - missing, atol=0.2)
    np.testing.assert_allclose(gaps.total, gaps.approximation + gaps.amortization, atol=1e-9)
    assert gaps.converged.all()

def test_chunks_have_the_numbers_of_the_whole():
    "Annealing of each image; bounds and searches of a chunk that begins where another did."
    lg = Bytes()
    model, x = lg.model(lg.off), lg.bytes(6)
    quick = (AISConfig(temperatures=3, chains=4, leapfrog_steps=1, start="posterior"), Climb(steps=25),
             "none", 20)
    whole, rest = measure_gaps(model, x, *quick), measure_gaps(model, x[4:], *quick, first=4)
    np.testing.assert_allclose(rest.log_px, whole.log_px[4:], rtol=1e-6)
    again = measure_gaps(model, x[4:], *quick, first=4, parts=("diagonal", "bound"))
    for field in ("elbo", "diagonal", "diagonal_converged"):
        np.testing.assert_array_equal(getattr(again, field), getattr(rest, field))
    assert not np.allclose(rest.elbo, whole.elbo[4:], rtol=1e-9) # other noise

def test_what_was_not_measured_is_not_a_number():
    lg = Bytes()
    told = []
    gaps = measure_gaps(lg.model(lg.off), lg.bytes(3), binarisation="none", samples=10, parts=("bound",),
                        progress=lambda *a: told.append(a))
    assert (np.isfinite(gaps.elbo).all() and np.isnan(gaps.total).all() and gaps.converged.all()
            and told == [("bound", 3)])
    assert {f for fields in PARTS.values() for f in fields} == set(Gaps._fields)
    with pytest.raises(InputError, match="part 'diagnal' is unknown.*diagonal"):
        measure_gaps(lg.model(lg.off), lg.bytes(3), parts=("diagnal",))

def made_up(n=50):
    return Gaps(*(np.linspace(a, a + 1, n) for a in (-90.0, -97.0, -93.0, -92.0, 5.0)), np.arange(n) > 0,
                np.arange(n) != 1)

def test_the_table_counts_what_failed():
    gaps = made_up()
    gaps.log_px[3] = np.nan
    row = gap_table({"vae": gaps}).loc["vae"]
    assert (row["not converged"] == 2 and row["images"] == 49 and row["amortization"].startswith("4.00 ±")
            and row["approximation"].startswith("3.0"))
    assert mean_error(np.array([1., 3., np.nan])) == "2.00 ± 1.00"

def test_width_one_is_the_method_itself():
    lg = Bytes()
    x = lg.bytes(6)
    model = lg.model(lg.off)
    row = iwae_by_width(model, x, 20, "none", (0.5, 1.))
    assert (np.array_equal(row[1.0], evaluate(model, x, 20, "none").iwae.numpy())
            and row[0.5].mean() != row[1.0].mean())

def test_measuring_leaves_the_model_as_it_was():
    x = (255 * (torch.rand(3, 1, 4, 4, generator=seeded()) < 0.5)).byte()
    model = bernoulli_model(gp_encoder()).float().train()
    model.decoder.eval()
    before, state = ([m.training for m in model.modules()],
                     {k: v.clone() for k, v in model.state_dict().items()})
    measure_gaps(model, x, AISConfig(temperatures=2, chains=2, leapfrog_steps=1, start="best"),
                 Climb(steps=25), samples=5)
    assert [m.training for m in model.modules()] == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

def test_scores_of_an_encoder_and_of_its_control():
    x = (255 * (torch.rand(30, 1, 4, 4, generator=seeded()) < 0.5)).byte()
    model = bernoulli_model(gp_encoder()).float().eval()
    of = scores(model, x, batch_size=7)
    assert list(of)[:3] == ["f", "g", "f_relative"] and all(v.shape == (30,) for v in of.values())
    whole = free_scores(model, (x > 127).float())
    for name, v in whole.items():
        np.testing.assert_allclose(of[name], v.double().numpy(), rtol=1e-5, atol=1e-5)
    q = model.posterior((x > 127).float())
    np.testing.assert_allclose(
        of["entropy"], torch.distributions.Normal(q.mu, q.log_sigma.exp()).entropy().sum(-1).detach().numpy(),
        rtol=1e-5
    )

def test_an_encoder_without_features_has_no_score_of_them():
    rough = lambda x: DiagonalGaussian(x.flatten(1)[:, :2], 0 * x.flatten(1)[:, :2])
    x = (255 * (torch.rand(5, 1, 4, 4, generator=seeded()) < 0.5)).byte()
    model = bernoulli_model(Call(rough)).float()
    assert set(scores(model, x)) == {"entropy", "reconstruction", "kl"}

def test_scores_leave_the_model_as_it_was():
    x = (255 * (torch.rand(5, 1, 4, 4, generator=seeded()) < 0.5)).byte()
    model = bernoulli_model(gp_encoder()).float().train()
    model.decoder.eval()
    before = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    scores(model, x)
    assert [m.training for m in model.modules()] == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())

def test_rankings():
    rng = np.random.default_rng(0)
    gap = rng.exponential(size=1000)
    good, bad = gap**3, rng.normal(size=1000)
    assert (spearman(good, gap) > 1 - 1e-12 and spearman(-good, gap) < -1 + 1e-12
            and best_score({"bad": bad, "good": good}, gap) == "good")
    rho, low, high, _ = bootstrap(spearman, bad, gap)
    assert abs(rho) < 0.1 and low < rho < high and 0.08 < high - low < 0.16
    table = by_decile(good, gap, decile_edges(good))
    assert (table["images"] == 100).all() and (np.diff(table["gap"]) > 0).all()
    assert auroc(gap, gap + 100) == 1 and auroc(gap + 100, gap) == 0

def test_a_score_with_a_nan_is_never_the_best_and_in_no_decile():
    gap = np.arange(100.)
    bad, good = np.where(gap == 3, np.nan, gap), gap.copy()
    for names in ({"bad": bad, "good": good}, {"good": good, "bad": bad}):
        assert best_score(names, gap) == "good"
    assert by_decile(bad, gap, decile_edges(bad))["images"].sum() == 99
    with pytest.raises(InputError, match="no score of bad"):
        best_score({"bad": bad}, gap)

def test_shifts():
    x = (255 * (torch.rand(50, 1, 8, 8, generator=seeded(5)) < 0.3)).byte()
    assert torch.equal(turned(turned(turned(turned(x)))), x) and not torch.equal(turned(x), x)
    changed = (noised(x, 0.2) != x).float().mean().item()
    assert abs(changed - 0.1) < 0.02 and torch.equal(
        noised(x, 0.2), noised(x, 0.2)
    )  # half of the coins fall on what was there
    with pytest.raises(InputError, match="share"):
        noised(x, 0.)
