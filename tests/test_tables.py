"Tables: differences are paired, unlike rows are refused, a seed counts once, and a box says what the rows say."
import numpy as np
import pandas as pd
import pytest
import scipy.stats

from gpvae.checks import InputError
from gpvae.files import write_json
from gpvae.statistics import bootstrap_interval, seed_interval
from gpvae.study.spec import METHODS
from gpvae.study.store import Store
from gpvae.study.tables import _leaders, _marked, difference_table, likelihood_table, line_table, markdown_table, method_box, paired, seed_difference
from test_store import made_up

def rows_of(*runs): return pd.DataFrame([r.metrics | dict(active_units=2, ess=9., train_seconds=1., valid_elbo=r.metrics["elbo"], best_epoch=3) for r in runs])

def shifted(shift=(0.5, 1.5, 2.5), n=500):
    "Rows and images of two methods, the second better by `shift` in its seeds."
    base = np.random.default_rng(0).normal(-90, 20, (3, n))
    images = {f"{m}{s}_{name}": base[s] + d for m, shifts in (("vae", (0, 0, 0)), ("gpvae", shift)) for s, d in enumerate(shifts) for name in ("iwae", "elbo")}
    return rows_of(*(made_up(m, s) for m in ("vae", "gpvae") for s in range(3))), images

def test_differences_are_paired_by_seed_and_image():
    rows, images = shifted()
    d = paired(rows, images, "gpvae")
    assert d.shape == (3, 500) and np.allclose(d, np.array([[.5], [1.5], [2.5]]))
    low, high = seed_interval(d)
    assert low < 1 and high > 2 and np.allclose(bootstrap_interval(d), 1.5, atol=1e-3)
    assert likelihood_table(rows, images).loc["gpvae", "IWAE − vae [images]"].startswith("+1.50")

def test_the_variance_between_seeds_is_pooled_over_all_methods():
    "A pair that differs by chance alike in all seeds is as uncertain as the other methods are; @eq-pooled by hand."
    rows, images = shifted((1., 1., 1.))
    third = pd.concat([rows, *(rows_of(made_up("sa-4", s)).assign(iwae=v) for s, v in enumerate((-90., -91., -92.)))])
    third.loc[third["method"] != "sa-4", "iwae"] = -90.
    mean, low, high = seed_difference(third, images, "gpvae")
    assert mean == pytest.approx(1.) and high - mean == pytest.approx(scipy.stats.t.ppf(.975, 6) * np.sqrt(2 * (2 * 1. / 6) / 3))
    assert seed_difference(rows.assign(iwae=-90.), images, "gpvae") == pytest.approx((1., 1., 1.))

def test_only_seeds_that_both_have_are_paired():
    rows, images = shifted()
    assert paired(rows[rows["spec"] != "gpvae1"], images, "gpvae").mean(1).tolist() == pytest.approx([.5, 2.5])
    with pytest.raises(InputError, match="no seed has both gpvae and vae"): paired(rows[rows["method"] == "vae"], images, "gpvae")

def test_missing_images_are_named():
    rows, images = shifted()
    with pytest.raises(InputError, match="gpvae2_iwae"): likelihood_table(rows, {k: v for k, v in images.items() if k != "gpvae2_iwae"})

@pytest.mark.parametrize("column, value", [("dataset", "other"), ("checksum", "def"), ("likelihood", "gaussian"), ("binarisation", "none"), ("z_dim", 3), ("n_train", 5), ("budget", "smoke"), ("settings", "lr=0.1")])
def test_a_table_never_averages_unlike_rows(column, value):
    rows, images = shifted()
    with pytest.raises(InputError, match=f"{column} .* cannot share a table"): likelihood_table(pd.concat([rows, rows[:1].assign(**{column: value})]), images)

def test_two_rows_of_one_seed_are_one_seed():
    rows, images = shifted()
    table = likelihood_table(pd.concat([rows, rows[:1]]), images)
    assert table["seeds"].tolist() == [3, 3]

def test_lines_come_in_the_order_asked_for_and_untimed_runs_have_no_times():
    rows, images = shifted()
    table = likelihood_table(rows, images, ["gpvae", "nothing", "vae"])
    assert list(table.index) == ["gpvae", "vae"] and (table["training step, ms"] == "").all()

def test_the_best_line_is_first_and_its_rows_are_alike():
    rows = rows_of(made_up(level=-90), made_up(seed=1, level=-92), made_up(level=-80, settings="lr=0.1")).assign(line=["plain", "plain", "fast"])
    table = line_table(rows)
    assert list(table.index) == ["fast", "plain"] and table.loc["plain", "test ELBO"] == "-92.00 ± 1.41"
    with pytest.raises(InputError, match="settings"): line_table(rows.assign(line="one"))

def test_a_curve_has_a_line_where_two_seeds_are_paired():
    rows, images = shifted()
    both = pd.concat([rows, rows[rows["seed"] == 0].assign(n_train=5)])
    table = difference_table(both, images, "gpvae", "vae", "elbo")
    assert list(table.index) == [10_000] and table["mean"].tolist() == pytest.approx([1.5]) and table["seeds"].tolist() == [3]

def test_the_best_and_what_is_not_told_apart_from_it_are_marked():
    "Three methods: the best, one whose interval to it reaches zero, and one far below."
    base = np.random.default_rng(0).normal(-90, 20, (3, 500))
    shifts = {"vae": (0., .1, -.1), "gpvae": (5., 5.3, 4.8), "sa-4": (5.1, 4.9, 5.2)}
    rows = rows_of(*(made_up(m, s, float(base[s].mean() + d)) for m, shift in shifts.items() for s, d in enumerate(shift)))
    rows["iwae"] = [float(base.mean() + d) for shift in shifts.values() for d in shift]
    images = {f"{m}{s}_iwae": base[s] + d for m, shift in shifts.items() for s, d in enumerate(shift)}
    best = _leaders(rows, images, "iwae")
    assert best == ["sa-4", "gpvae"] and seed_difference(rows, images, "gpvae", "sa-4")[2] > 0 > seed_difference(rows, images, "vae", "sa-4")[2]
    marked = _marked(rows, images, "iwae")
    assert [m for m, text in marked.items() if text.startswith("**")] == ["gpvae", "sa-4"] and set(marked) == set(shifts)
    assert _leaders(rows, {}, "iwae") == ["sa-4"] # without images nothing is tied
    one = rows[rows["seed"] == 0]
    assert _leaders(one, images, "iwae")[0] == "sa-4" and "vae" not in _leaders(one, images, "iwae")

def test_a_number_that_some_runs_have_is_compared_on_the_images_that_all_have():
    rows = rows_of(made_up("vae"), made_up("gpvae"), made_up("sa-4"))
    images = {"vae0_test_log_px": np.arange(6.) - 90, "gpvae0_test_log_px": np.arange(4.) - 80}
    marked = _marked(rows, images, "test_log_px")
    assert marked == {"vae": "-88.50", "gpvae": "**-78.50**"}

def test_markdown():
    assert markdown_table(pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="n"))).splitlines() == ["| n | a |", "| --- | --- |", "| x | 1 |", "| y | 2 |"]

def test_a_box_says_what_the_rows_say(tmp_path):
    store = Store(tmp_path)
    store.keep([made_up(m, s, level, dataset="static_mnist", z_dim=20) for m, level in (("vae", -97), ("sa-4", -95)) for s in range(2)])
    write_json(tmp_path / "benchmarks.json", {"benchmark": {"groups": {"posterior": {"vae": [1., 2.], "sa-4": [15., 30.]}}}})
    box = method_box("sa-4", store)
    for text in (METHODS["sa-4"].idea, "15.0 × the VAE", "10,000", "2 seeds", "IWAE-100 -95.00 ± 0.00", "The VAE has ELBO -98.00"): assert text in box
    assert box.startswith('::: {.callout-note title="At a glance"}\n') and box.endswith("\n:::")
    assert "Not on static MNIST yet" in method_box("hf-4", store) and "Cost" not in method_box("hf-4", store) and "The VAE has" not in method_box("vae", store)
