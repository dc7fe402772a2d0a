"Refitted heads against an encoder whose best heads are known, and the doubt of a process against what its draws cost."
import math

import pandas as pd
import pytest
import torch
from torch import nn

from gpvae.encoders.gp import GPEncoder
from gpvae.study.measure import _doubt, refit_heads, refit_rows
from gpvae.study.run import load_model, run
from gpvae.study.spec import RunSpec
from gpvae.study.store import Store
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.vae import VAE, Encoder, bounds
from toys import SHAPE, LinearGaussian, Z, assert_zero, seeded

def exact_model(kind=AmortizedEncoder, **options):
    "The linear-Gaussian model with the encoder that is exact: its trunk hands the pixels on."
    toy = LinearGaussian(orthogonal=True)
    encoder = kind(nn.Flatten(), toy.A.shape[0], Z, **options).double()
    with torch.no_grad():
        weight = toy.cov @ toy.A.T / toy.s**2
        encoder.b.weight.copy_(weight); encoder.b.bias.copy_(-weight @ toy.a)
        encoder.c.weight.zero_(); encoder.c.bias.copy_(0.5 * toy.cov.diagonal().log())
    return toy, VAE(encoder, toy.decoder, toy.likelihood).double()

def moved(model, part):
    "The heads, or their biases alone, beside where they should be."
    with torch.no_grad():
        for head in (model.encoder.b, model.encoder.c):
            for p in [head.bias] if part == "biases" else head.parameters(): p.add_(0.2 * torch.randn(p.shape, generator=seeded(3), dtype=p.dtype))
    return model

def state(model): return {k: v.clone() for k, v in model.state_dict().items()}

def test_the_bound_of_the_exact_encoder_is_the_likelihood():
    toy, model = exact_model()
    x = toy.images(2000)
    assert_zero(bounds(model, x.split(500)) - toy.log_px(x))
    assert torch.equal(bounds(model, x.split(500)), bounds(model, x.split(500)))

@pytest.mark.parametrize("part", ["biases", "heads"])
@pytest.mark.parametrize("kind, options", [(AmortizedEncoder, {}), (GPEncoder, {"covariance": "none", "features": "raw"})])
def test_refitted_heads_are_the_best(part, kind, options):
    toy, best = exact_model(kind, **options)
    x, model = toy.images(2000), moved(exact_model(kind, **options)[1], part)
    before = state(model)
    after = refit_heads(model, x, part, epochs=20, lr=0.03)
    lost = lambda m: (bounds(best, x.split(500), 50) - bounds(m, x.split(500), 50)).mean()
    assert lost(model) > 0.1 and abs(lost(after)) < 0.02 * lost(model)
    for name, value in state(model).items(): assert torch.equal(value, before[name]), f"the model that was handed in has another {name}"
    heads = {"biases": {f"encoder.{h}.bias" for h in "bc"}, "heads": {f"encoder.{h}.{p}" for h in "bc" for p in ("weight", "bias")}}[part]
    assert {name for name, value in state(after).items() if not torch.equal(value, before[name])} == heads

def test_refitting_repeats_itself():
    toy, model = exact_model()
    x = toy.images(300)
    a, b, other = (state(refit_heads(model, x, epochs=2, seed=s)) for s in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], other[k]) for k in a)

class Headless(Encoder):
    def forward(self, x, log_joint=None): return None

def test_what_cannot_be_refitted_is_said():
    toy, model = exact_model()
    with pytest.raises(ValueError, match="part.*weights.*biases, heads"): refit_heads(model, toy.images(4), "weights")
    with pytest.raises(ValueError, match="an encoder with heads b and c, Headless has none"): refit_heads(VAE(Headless(), model.decoder, model.likelihood), toy.images(4))

def test_doubt_is_what_a_draw_costs_near_the_best_gaussian():
    "With an exact mean function and little randomness: the bound of the mean less that of a draw, averaged over draws."
    toy, model = exact_model(GPEncoder, features="raw")
    x, encoder = toy.images(2000), model.encoder
    with torch.no_grad():
        for weights in (encoder.W, encoder.U): weights.cov.log_scale.fill_(math.log(0.03))
    assert _doubt(exact_model()[1], x) == 0
    r = encoder.eval().functions(x)
    log_sigma = 0.5 * toy.cov.diagonal().log()
    cost = (0.5 * (r.f_var / torch.exp(2 * log_sigma)).sum(1) + r.g_var.sum(1)).mean().item()
    assert 0.01 < cost == pytest.approx(_doubt(model, x), rel=0.1)
    encoder.mode = "mean"
    at_mean = bounds(model, x.split(500), 40)
    encoder.train(); torch.manual_seed(0)
    with torch.no_grad(): drawn = torch.stack([model.elbo(x, 40, seeded(i)) for i in range(40)]).mean(0)
    assert (at_mean - drawn).mean().item() == pytest.approx(cost, rel=0.15)

@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    runs, tiny = tmp_path_factory.mktemp("runs"), (("epochs", 2), ("hidden", (8,)), ("n_test", 20))
    return [run(RunSpec("digits", m, 2, settings=tiny), runs, "cpu", bar=False).folder for m in ("vae", "gpvae")]

def test_rows_of_a_run(folders, tmp_path):
    rows = pd.DataFrame(refit_rows(folders[1], n=100, epochs=2))
    assert list(rows["part"]) == ["biases", "heads", "heads", "heads"] and list(rows["fitted"]) == ["training images", "training images", "test images", "other test images"]
    assert (rows["doubt"] > 0).all() and (rows["images"] == 100).all() and rows.loc[1, "won"] > 0 and rows.loc[0, "before"] == rows.loc[1, "before"]
    encoder = load_model(folders[1]).encoder
    weights = sum((1 - torch.exp(2 * layer.cov.log_scale)).sum().item() for layer in (encoder.W, encoder.U)) # α and τ are 1
    assert rows["predicted"].to_numpy() == pytest.approx(weights / (2 * 1300))

def test_refits_are_kept_once(folders, tmp_path):
    store, rows = Store(tmp_path), [refit_rows(f, n=50, epochs=1) for f in folders]
    store.keep_refits([row for of_run in rows for row in of_run])
    first = store.refits()
    store.keep_refits(rows[0])
    assert len(first) == 8 and set(first["spec"]) == {f.name for f in folders}
    pd.testing.assert_frame_equal(first, store.refits())
