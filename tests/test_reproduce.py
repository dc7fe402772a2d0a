"Pages: failing runs are named, results outlive the runs, and the committed tables say what their runs said."
import os
from pathlib import Path
import nbformat
import numpy as np
import pandas as pd
import pytest
from gpvae.checks import InputError
from gpvae.reproduce import PAGES, grid, page_rows, render, train_missing
from gpvae.run import COLUMNS, RunResult, RunSpec
from gpvae.tables import N_IMAGES, bootstrap_interval, likelihood_table, paired, read_csv, read_images, result_paths, save_results, seed_interval

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "results"
COMMITTED = sorted(p.stem for p in RESULTS.glob("*.csv") if not p.stem.endswith("_modes") and not p.stem.startswith("gap_") and p.stem != "refit") # rows of runs
TINY = (("epochs", 2), ("hidden", (8,)))

def test_a_failing_run_is_named_and_the_others_are_kept(runs):
    specs = [RunSpec("digits", "vae", settings=TINY), RunSpec("digits", "gpvae", settings=TINY + (("lr", 1e9),))]
    with pytest.raises(InputError, match="gpvae seed 0 ended with status 2: .*step"): train_missing(specs, runs, 2, "cpu", bar=False)
    assert sum((f / "metrics.json").exists() for f in runs.iterdir()) == 1
    assert train_missing(specs[:1], runs, 1, "cpu", bar=False)[0].metrics["method"] == "vae"

@pytest.mark.parametrize("arguments, message", [(dict(budget="cpuu"), "did you mean 'cpu'"), (dict(budget="cpu", methods=["gpvea"]), "did you mean 'gpvae'"), (dict(budget="cpu", seeds=0), "seeds is 0")])
def test_a_wrong_page_is_refused(arguments, message):
    with pytest.raises(InputError, match=message): grid("digits", **arguments)

def test_the_page_renders_from_the_results_files_alone(tmp_path, monkeypatch):
    for path in result_paths("digits", RESULTS).values(): (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("GPVAE_RESULTS", str(tmp_path))
    page = nbformat.read(render("digits", "smoke", tmp_path / "no runs", tmp_path), as_version=4)
    outputs = [o for c in page.cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o.output_type in ("error", "stream")]
    assert any("run folders are not on this machine" in str(o) for o in outputs) and any("IWAE-100" in str(o) for o in outputs)
    assert str(tmp_path) not in nbformat.writes(page) and "parameters" in str([c.metadata for c in page.cells])

def made_up(method, seed, iwae):
    row = dict.fromkeys(COLUMNS) | dict(protocol=1, dataset="toy", method=method, seed=seed, z_dim=2, budget="cpu", n_train=9, elbo=float(iwae.mean()) - 1, iwae=float(iwae.mean()), iwae_k=100, active_units=2,
                                        ess=9., train_seconds=1., infer_ms_batch=1., infer_ms_one=.1, step_ms=9., spec=f"{method}{seed}")
    return RunResult(Path(), row, {"iwae": iwae, "elbo": iwae - 1})

def test_a_new_row_replaces_its_own_and_no_other(tmp_path):
    import torch
    old = [made_up("vae", s, torch.full((N_IMAGES + 1000,), -90. - s)) for s in range(2)]
    save_results(old, tmp_path)
    save_results([made_up("vae", 1, torch.full((N_IMAGES + 1000,), -80.))], tmp_path)
    rows, images = read_csv(tmp_path / "toy.csv"), read_images(tmp_path / "toy_per_image.npz")
    assert rows.set_index("seed")["iwae"].to_dict() == {0: -90., 1: -80.}
    assert {k: (len(v), v[0]) for k, v in images.items() if k.endswith("iwae")} == {"vae0_iwae": (N_IMAGES, -90.), "vae1_iwae": (N_IMAGES, -80.)}

def test_differences_are_paired_by_seed_and_image(tmp_path):
    import torch
    base = [torch.randn(500) * 20 - 90 for _ in range(3)]
    save_results([made_up("vae", s, x) for s, x in enumerate(base)] + [made_up("gpvae", s, x + 0.5 + s) for s, x in enumerate(base)], tmp_path)
    rows, images = read_csv(tmp_path / "toy.csv"), read_images(tmp_path / "toy_per_image.npz")
    d = paired(rows, images, "gpvae")
    assert d.shape == (3, 500) and np.allclose(d, np.array([[.5], [1.5], [2.5]]), atol=0.02)
    low, high = seed_interval(d)
    assert low < 1 and high > 2 and np.allclose(bootstrap_interval(d), 1.5, atol=1e-3)

@pytest.mark.parametrize("name", COMMITTED)
def test_committed_rows_are_whole(name):
    rows, images = read_csv(RESULTS / f"{name}.csv"), read_images(RESULTS / f"{name}_per_image.npz")
    assert tuple(rows.columns) == COLUMNS and rows["spec"].is_unique
    assert (rows["elbo"] <= rows["iwae"]).all() and rows["iwae"].between(-1e4, 1e5).all() and rows["commit"].notna().all()
    for _, row in rows.iterrows():
        iwae = images[f"{row['spec']}_iwae"]
        error = iwae.std() / len(iwae)**0.5
        assert len(iwae) <= N_IMAGES and abs(iwae.mean() - row["iwae"]) < (0.01 if len(iwae) < 2000 else 5 * error) # all images, or the first of a seeded order
    assert (RESULTS / f"{name}_per_image.npz").stat().st_size < 1_000_000

@pytest.mark.parametrize("name, budget", [("digits", "smoke"), ("static_mnist", "cpu"), ("static_mnist_constant_step", "constant_step"), ("static_mnist_published", "published")])
def test_committed_pages_show_what_their_files_say(name, budget):
    if not (RESULTS / f"{name}.ipynb").exists(): pytest.skip(f"the page {name} is not rendered yet")
    rows = page_rows(read_csv(RESULTS / f"{name}.csv"), budget)
    for method, seeds in PAGES[budget].methods.items(): assert set(range(seeds)) <= set(rows.loc[rows["method"] == method, "seed"]), f"{method} has fewer seeds than its page states"
    text = (RESULTS / f"{name}.ipynb").read_text()
    table = likelihood_table(rows, read_images(RESULTS / f"{name}_per_image.npz"), list(dict.fromkeys([*PAGES[budget].methods, *rows["method"]])))
    for cell in table.astype(str).to_numpy().ravel(): assert cell in text
    for method, g in rows.groupby("method"): assert f"{g['iwae'].mean():.2f}" in table.filter(like="IWAE-").loc[method].iloc[0]
