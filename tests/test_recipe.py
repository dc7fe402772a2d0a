"The ablation's lines, and the refitted heads against an encoder whose best heads are known."
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from gpvae.gp_encoder import GPEncoder
from gpvae.recipe import CHANGES, CONSTANT, bound_of, curve_grid, doubt, keep_refits, line_of, recipe_grid, recipe_table, refit, refit_rows
from gpvae.run import BUDGETS, RunSpec, run, settings_of, settings_text
from gpvae.tables import read_csv
from gpvae.vae import VAE, AmortizedEncoder
from toys import SHAPE, LinearGaussian, Z, assert_zero, seeded

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "results"

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
    assert_zero(bound_of(model, x) - toy.log_px(x))
    assert torch.equal(bound_of(model, x), bound_of(model, x))

@pytest.mark.parametrize("part", ["biases", "heads"])
@pytest.mark.parametrize("kind, options", [(AmortizedEncoder, {}), (GPEncoder, {"covariance": "none", "features": "raw"})])
def test_refitted_heads_are_the_best(part, kind, options):
    toy, best = exact_model(kind, **options)
    x, model = toy.images(2000), moved(exact_model(kind, **options)[1], part)
    before = state(model)
    after = refit(model, x, part, epochs=20, lr=0.03)
    lost = lambda m: (bound_of(best, x, 50) - bound_of(m, x, 50)).mean()
    assert lost(model) > 0.1 and abs(lost(after)) < 0.02 * lost(model)
    for name, value in state(model).items(): assert torch.equal(value, before[name]), f"the model that was handed in has another {name}"
    heads = {"biases": {f"encoder.{h}.bias" for h in "bc"}, "heads": {f"encoder.{h}.{p}" for h in "bc" for p in ("weight", "bias")}}[part]
    assert {name for name, value in state(after).items() if not torch.equal(value, before[name])} == heads

def test_refitting_repeats_itself():
    toy, model = exact_model()
    x = toy.images(300)
    a, b, other = (state(refit(model, x, epochs=2, seed=s)) for s in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], other[k]) for k in a)

def test_what_cannot_be_refitted_is_said():
    toy, model = exact_model()
    with pytest.raises(ValueError, match="part.*weights.*biases, heads"): refit(model, toy.images(4), "weights")
    with pytest.raises(ValueError, match="an encoder with heads b and c, Identity has none"): refit(VAE(nn.Identity(), model.decoder, model.likelihood), toy.images(4))

def test_doubt_is_what_a_draw_costs_near_the_best_gaussian():
    "With an exact mean function and little randomness: the bound of the mean less that of a draw, averaged over draws."
    toy, model = exact_model(GPEncoder, features="raw", init_scale=0.03)
    x, encoder = toy.images(2000), model.encoder
    assert doubt(exact_model()[1], x) == 0
    r = encoder.eval().functions(x)
    log_sigma = 0.5 * toy.cov.diagonal().log()
    cost = (0.5 * (r.f_var / torch.exp(2 * log_sigma)).sum(1) + r.g_var.sum(1)).mean().item()
    assert 0.01 < cost == pytest.approx(doubt(model, x), rel=0.1)
    encoder.mode = "mean"
    at_mean = bound_of(model, x, 40)
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
    keep_refits(folders, tmp_path); first = read_csv(tmp_path / "refit.csv")
    keep_refits(folders[:1], tmp_path); second = read_csv(tmp_path / "refit.csv")
    assert len(first) == len(second) == 8 and set(second["spec"]) == {f.name for f in folders}
    key = ["spec", "part", "fitted"]
    pd.testing.assert_frame_equal(first.sort_values(key).reset_index(drop=True), second.sort_values(key).reset_index(drop=True))

def test_every_line_is_another_run():
    for changes in (CHANGES, CONSTANT):
        lines = [(method, settings_text(tuple(settings.items()))) for method, settings in changes.values()]
        assert len(set(lines)) == len(lines)
        for name, (method, text) in zip(changes, lines): assert line_of(pd.Series({"method": method, "settings": text or None}), changes) == name
    for name, (method, settings) in CONSTANT.items(): # one step size, and nothing else but the epochs of a warm start
        own = {k: v for k, v in settings.items() if k not in ("milestones", "epochs")}
        assert settings["milestones"] == () and (method, own) == CHANGES[name] and ("epochs" in settings) == ("warm_start" in settings)
    assert len(recipe_grid(3)) == 3 * len(CHANGES) and settings_of(recipe_grid(1)[0]).milestones == BUDGETS["cpu"].milestones != ()
    assert all(settings_of(s).milestones for s in recipe_grid(1) + curve_grid(1)) and not any(settings_of(s).milestones for s in recipe_grid(1, changes=CONSTANT))

@pytest.mark.parametrize("name, changes", [("recipe", CHANGES), ("recipe_constant_step", CONSTANT)])
def test_kept_rows_belong_to_lines(name, changes):
    rows = read_csv(RESULTS / f"{name}.csv")
    assert rows.apply(line_of, axis=1, changes=changes).notna().all() and len(recipe_table(rows, changes)) > 3

def test_the_step_is_the_best_of_those_tried_for_the_vae():
    "Within the noise of the validation set: no other schedule is ahead by more than 0.05 nats."
    rows = read_csv(RESULTS / "recipe.csv")
    rows = rows[(rows["method"] == "vae") & (rows["seed"] == 0) & rows["settings"].fillna("").str.fullmatch(r"(milestones=\([^)]*\))?")].fillna({"settings": ""}).set_index("settings")["valid_elbo"]
    assert len(rows) >= 4 and rows[""] > rows.max() - 0.05

def test_kept_refits_are_of_kept_runs():
    refits = read_csv(RESULTS / "refit.csv")
    runs = pd.concat([read_csv(RESULTS / f"{name}.csv") for name in ("recipe", "recipe_constant_step")]).set_index("spec")
    assert set(refits["spec"]) <= set(runs.index) and not refits.duplicated(["spec", "part", "fitted"]).any()
    assert (refits["error"] > 0).all() and ((refits["doubt"] > 0) == (refits["method"] == "gpvae")).all()
    for spec, rows in refits.groupby("spec"):
        assert (runs.loc[spec, ["method", "seed"]] == rows[["method", "seed"]].iloc[0]).all()
        judged = rows.loc[rows["fitted"] == "test images", "before"].item() # the first of the images that the run's bound is a mean over
        assert abs(judged - runs.loc[spec, "elbo"]) < 1
