"Tables: cells are three formats, unlike runs are refused, times of two machines never stand in one column."

import numpy as np
import pandas as pd
import pytest

from gpvae.checks import InputError
from gpvae.study import tables
from gpvae.statistics import Interval
from gpvae.study.config import RunSpec
from gpvae.study.store import Store
from gpvae.study.studies import Results, Study, name_lines, refined_variants
from test_store import made_up

MORE = dict(active_units=2.0, ess=9.0, train_seconds=60.0, peak_mb=300.0, step_ms=10.0, infer_ms_batch=1.0,
            infer_ms_one=0.1, valid_elbo=-91.0, best_epoch=3)


def results(tmp_path, *runs, reference="vae"):
    "The results of made-up runs."
    store = Store(tmp_path / "store")
    store.keep(runs)
    specs = [RunSpec("digits", run.row["method"], 2, run.row["seed"]) for run in runs]
    return Study("made_up", "Made up", tuple(dict.fromkeys(specs)), reference=reference).results(store)


@pytest.mark.parametrize("text, expected",
                         [(tables.mean_sd([-90.0]), "−90.00"),
                          (tables.mean_sd([-90.0, -91.0]), "−90.50 ± 0.71"),
                          (tables.mean_sd([np.nan]), ""),
                          (tables.mean_sd([3.0, np.nan, 4.0], 1), "3.5 ± 0.7"),
                          (tables.number(-0.001), "0.00"),
                          (tables.number(np.inf), ""),
                          (tables.with_interval(Interval(0.5, -0.25, 1.25, 0.95)), "+0.50 [−0.25, +1.25]"),
                          (tables.with_interval(None), ""),
                          (tables.duration(0.0002), "0.2 ms"),
                          (tables.duration(0.01234), "12.3 ms"),
                          (tables.duration(1.5), "1.5 s"),
                          (tables.duration(45), "45 s"),
                          (tables.duration(400), "6.7 min"),
                          (tables.duration(9000), "2.5 h"),
                          (tables.duration(np.nan), "")])
def test_formats(text, expected):
    assert text == expected


def test_log_px_comes_first_where_it_was_measured(tmp_path):
    runs = [made_up(m, s, level, **MORE) for m, level in (("vae", -90), ("gpvae", -89)) for s in (0, 1)]
    table = tables.likelihoods(results(tmp_path, *runs))
    assert table.columns.tolist() == ["seeds", "ELBO", "IWAE-100", "active units", "ESS"]
    assert table.loc["vae"].tolist() == [2, "−91.00 ± 0.00", "−90.00 ± 0.00", "2.0 ± 0.0", "9.0 ± 0.0"]
    for run in runs:
        run.row.update(log_px=run.row["iwae"] + 3, log_px_error=0.5, n_log_px=50)
        run.per_image["log_px"] = run.per_image["iwae"] + 3
    table = tables.likelihoods(results(tmp_path, *runs), bold=True)
    assert table.columns.tolist()[1:4] == ["log p(x)", "ELBO", "IWAE-100"]
    assert table["log p(x)"].tolist() == ["−87.00 ± 0.00", "**−86.00 ± 0.00**"]
    assert "**" not in str(table["ELBO"].tolist())


def test_the_best_is_judged_by_what_all_methods_have(tmp_path):
    runs = [made_up("vae", 0, -90, **MORE, log_px=-80.0, n_log_px=50), made_up("gpvae", 0, -89, **MORE)]
    table = tables.likelihoods(results(tmp_path, *runs), bold=True)
    assert table.loc["gpvae", "ELBO"].startswith("**") and not table.loc["vae", "log p(x)"].startswith("**")


def test_log_px_is_averaged_over_the_images_that_all_runs_have(tmp_path):
    runs = [made_up("vae", **MORE, log_px=-50.0, n_log_px=50),
            made_up("gpvae", **MORE, log_px=-12.0, n_log_px=25)]
    for run, n in zip(runs, (50, 25)):
        run.per_image["log_px"] = -np.arange(n, dtype=np.float32)
    table = tables.likelihoods(results(tmp_path, *runs))
    assert table["log p(x)"].tolist() == ["−12.00", "−12.00"]


def test_differences_have_one_verdict_and_the_seeds_it_rests_on(tmp_path):
    levels = {"vae": (-90.0, -90.2, -89.8), "gpvae": (-85.0, -85.1, -84.9), "full": (-95.0, -95.1),
              "sa-4": (-90.1, -89.9)}
    runs = [made_up(m, s, level, **MORE) for m, of in levels.items() for s, level in enumerate(of)]
    found = results(tmp_path, *runs)
    table = tables.differences(found)
    assert table["is higher"].to_dict() == {"gpvae": "supported", "full": "contradicted",
                                            "sa-4": "inconclusive"}
    assert table["seeds"].tolist() == ["3 and 3", "2 and 3", "2 and 3"] and set(table["by"]) == {"ELBO"}
    opening = tables.verdicts(found)
    assert opening["gpvae − vae"].tolist()[0] == table.loc["gpvae", "Δ ELBO"]  # one interval everywhere
    assert opening["gpvae is higher"].tolist() == ["supported", "supported"]


def test_one_seed_of_each_has_no_verdict(tmp_path):
    found = results(tmp_path, made_up("vae", 0, -90, **MORE), made_up("gpvae", 0, -80, **MORE))
    assert tables.differences(found).loc["gpvae", "is higher"] == "one seed"
    assert set(tables.verdicts(found)["gpvae is higher"]) == {"one seed"}
    assert not len(tables.verdicts(found, "full"))


def test_times_of_another_machine_are_blank(tmp_path):
    fast = MORE | dict(step_ms=1.0, machine="gpu")
    mixed = [made_up("sa-4", 0, **MORE), made_up("sa-4", 1, **fast)]
    found = results(tmp_path, made_up("vae", **MORE), made_up("gpvae", **MORE | dict(step_ms=15.0)),
                    made_up("full", **fast), *mixed)
    table = tables.costs(found)
    assert table["training step"].to_dict() == {
        "vae": "10 ms", "gpvae": "15 ms (1.50 ×)", "full": "", "sa-4": ""
    }
    assert table["machine"].to_dict() == {"vae": "cpu", "gpvae": "cpu", "full": "gpu", "sa-4": "cpu, gpu"}
    assert set(tables.timed(found).rows["machine"]) == {"cpu"}


@pytest.mark.parametrize("column, value",
                         [("checksum", "def"), ("likelihood", "gaussian"), ("binarisation", "none")])
def test_a_table_never_averages_unlike_runs(tmp_path, column, value):
    found = results(tmp_path, made_up("vae", **MORE), made_up("gpvae", **MORE, **{column: value}))
    for table in (tables.likelihoods, tables.differences, tables.costs):
        with pytest.raises(InputError, match=f"{column} .* cannot share a table"):
            table(found)


def test_sizes_are_parts_of_a_table(tmp_path):
    found = results(tmp_path, *(made_up(m, **MORE) for m in ("vae", "gpvae")))
    rows = pd.concat([found.rows, found.rows.assign(z_dim=5, elbo=-70.0)], ignore_index=True)
    both = Results(found.study, rows, found.store)
    assert [heading for heading, _ in tables.parts(both)] == [{"z": 2}, {"z": 5}]
    table = tables.likelihoods(both, bold=True)
    assert table["z"].tolist() == [2, 2, 5, 5] and table.index.tolist() == ["vae", "gpvae"] * 2


def test_a_refined_encoder_is_compared_with_its_own_run(tmp_path):
    spec = RunSpec("digits", "vae", 2)
    step = refined_variants(spec)["one step"]
    runs = [made_up("vae", 0, -90, **MORE),
            made_up("vae", 0, -88, **MORE, run="stepped", spec=step.text(), settings="natural_step=0.5")]
    runs[1].per_image["iwae"] = runs[0].per_image["iwae"] + 2
    store = Store(tmp_path)
    store.keep(runs)
    table = tables.refined(name_lines("one", "One", {"vae": spec}).results(store))
    assert table.index.tolist() == ["vae, one step"]
    assert table.loc["vae, one step", "Δ IWAE-100"].startswith("+2.00 [")


def test_nothing_finished_is_an_empty_table(tmp_path):
    found = Study("empty", "Empty", (RunSpec(),)).results(Store(tmp_path / "none"))
    for table in (tables.facts, tables.methods, tables.verdicts, tables.likelihoods, tables.differences,
                  tables.costs, tables.refined, tables.modes, tables.widths, tables.mixtures, tables.runs,
                  tables.schedule):
        assert not len(table(found)), table.__name__
    assert not len(tables.timed(found).rows)


def test_every_other_table_shows_what_the_rows_hold(tmp_path):
    gpvae = made_up("gpvae", **MORE, modes=("mean", "marginal"))
    for row in gpvae.modes:
        row.update(iwae=-89.0, ess=3.0)
    found = results(tmp_path, made_up("vae", **MORE, width=1.4, iwae_widened=-89.5),
                    made_up("me-3", **MORE | dict(weights="0.2 0.3 0.5"), information=0.3), gpvae)
    assert tables.widths(found).loc["vae"].tolist() == ["1.4", "−90.00", "−89.50", "0.50"]
    assert tables.mixtures(found).loc["me-3"].tolist() == ["0.2 0.3 0.5", "0.30"]
    assert tables.modes(found).set_index("mode").loc["mean"].tolist() == ["−90.00", "−89.00", "3.0"]
    assert tables.facts(found).loc["training images", "value"] == "1,300"
    assert tables.methods(found).loc["gpvae", "name"] == "GP encoder" and len(tables.runs(found)) == 3
    assert tables.schedule(found).loc["epochs", "value"] == "100"
