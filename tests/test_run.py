"From a specification to a row: what is written, what is reused, what names a run."
import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import gpvae.run
from gpvae.checks import InputError
from gpvae.commands import run_command
from gpvae.data import load, prepare_splits
from gpvae.iwae import evaluate
from gpvae.run import BUDGETS, COLUMNS, LATER, METHODS, PROTOCOL, RunSpec, load_images, load_model, parse_setting, read_spec, run, settings_of, spec_hash, time_run

SETTINGS = (("epochs", 3), ("hidden", (16, 16)), ("n_test", 50), ("k", 5), ("kl_warmup", 1))
SPEC = RunSpec(method="vae", z_dim=4, n_train=200, settings=SETTINGS)

def go(runs, **changes): return run(dataclasses.replace(SPEC, **changes), runs, "cpu", bar=False)
def without_times(metrics): return {k: v for k, v in metrics.items() if k not in ("train_seconds", "epoch_seconds", "peak_mb", "commit", "infer_ms_batch", "infer_ms_one", "step_ms")}

@pytest.mark.parametrize("method", METHODS)
def test_row_and_numbers_of_each_image(runs, method):
    r = go(runs, method=method)
    m = r.metrics
    assert set(COLUMNS) <= set(m) and json.loads((r.folder / "metrics.json").read_text()) == m
    asked = dict(dataset="digits", method=method, z_dim=4, seed=0, likelihood="bernoulli", budget="smoke", n_train=200, binarisation="fixed", iwae_k=5, epochs=3, protocol=PROTOCOL, inflation=1)
    assert {k: m[k] for k in asked} == asked and m["spec"] == r.folder.name
    assert -64 < m["elbo"] < m["iwae"] < 0 and 1 <= m["ess"] <= 5 and 0 <= m["active_units"] <= 4 and m["train_seconds"] > 0 and m["peak_mb"] > 50
    assert all(v.shape == (50,) and v.dtype == torch.float32 and v.isfinite().all() for v in r.per_image.values())
    for name in ("elbo", "iwae", "ess"): assert m[name] == pytest.approx(r.per_image[name].double().mean().item(), rel=1e-5)
    assert m["iwae_se"] == pytest.approx(r.per_image["iwae"].double().std().item() / 50**0.5, rel=1e-5)
    assert {p.name for p in r.folder.iterdir()} - {".lock"} == {"spec.json", "checkpoint.safetensors", "metrics.json", "per_image.safetensors"}

def test_uncertainty_of_each_image_is_kept(runs):
    r = go(runs, method="gpvae")
    names = {"uncertainty_f", "uncertainty_g", "uncertainty_f_relative"}
    assert names <= set(r.per_image) and all((r.per_image[n] > 0).all() for n in names)
    assert set(r.metrics["modes"]) == {"mean", "marginal", "mixture"} and r.metrics["modes"]["marginal"]["elbo"] == pytest.approx(r.metrics["elbo"], abs=1e-6)

def test_saved_model_gives_the_reported_numbers(runs):
    r = go(runs, method="gpvae")
    spec, data = load_images(read_spec(r.folder))
    x = prepare_splits(data, spec.binarisation).test[:50]
    again = evaluate(load_model(r.folder), x, 5)
    for name in ("elbo", "iwae", "ess"): assert torch.equal(getattr(again, name).float(), r.per_image[name])

def test_finished_run_is_not_trained_again(runs, monkeypatch):
    first = go(runs)
    def fail(*args): raise AssertionError("trained or evaluated again")
    monkeypatch.setattr("gpvae.run.train_run", fail); monkeypatch.setattr("gpvae.run.measure", fail)
    second = go(runs)
    assert second.metrics == first.metrics and second.folder == first.folder
    for name, value in first.per_image.items(): assert torch.equal(value, second.per_image[name])

def test_same_seed_same_bits_and_another_seed_another_model(tmp_path):
    a, b, c = go(tmp_path / "a"), go(tmp_path / "b"), go(tmp_path / "c", seed=1)
    assert without_times(a.metrics) == without_times(b.metrics) and a.metrics["iwae"] != c.metrics["iwae"]
    assert (a.folder / "per_image.safetensors").read_bytes() == (b.folder / "per_image.safetensors").read_bytes()
    x, y = (load_file(r.folder / "checkpoint.safetensors") for r in (a, b))
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)

def test_other_work_in_the_process_does_not_matter(tmp_path):
    a = go(tmp_path / "a")
    torch.manual_seed(99); torch.randn(7)
    assert without_times(go(tmp_path / "b").metrics) == without_times(a.metrics)

def test_evaluation_that_was_cut_short_is_done_again(runs, monkeypatch):
    whole = go(runs / "whole")
    def stop(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr("gpvae.run.evaluate_modes", stop) # after per_image is written
        with pytest.raises(KeyboardInterrupt): go(runs / "cut")
    folder = runs / "cut" / whole.folder.name
    assert (folder / "per_image.safetensors").exists() and not (folder / "metrics.json").exists()
    assert without_times(go(runs / "cut").metrics) == without_times(whole.metrics)

# --- names -----------------------------------------------------------------------------------------------------------------------------------

def test_hash_covers_specification_pixels_and_protocol(monkeypatch):
    base = spec_hash(SPEC, "pixels")
    others = [dict(dataset="mnist"), dict(method="gpvae"), dict(z_dim=5), dict(seed=1), dict(budget="cpu"), dict(likelihood="gaussian"), dict(n_train=100),
              dict(binarisation="static"), dict(settings=()), dict(settings=(*SETTINGS, ("lr", 0.1)))]
    hashes = [spec_hash(dataclasses.replace(SPEC, **o), "pixels") for o in others] + [spec_hash(SPEC, "other pixels")]
    with monkeypatch.context() as m:
        m.setattr("gpvae.run.PROTOCOL", PROTOCOL + 1)
        hashes.append(spec_hash(SPEC, "pixels"))
    assert len({base, *hashes}) == len(hashes) + 1 and len(base) == 12 and set(base) <= set("0123456789abcdef")
    assert {f.name for f in dataclasses.fields(SPEC)} == set().union(*others) # no field is forgotten here
    assert spec_hash(dataclasses.replace(SPEC, settings=SETTINGS[::-1]), "pixels") == base

def test_hash_covers_what_a_preset_says(monkeypatch):
    "A budget whose content changes, and a method's default, name other runs; how often a checkpoint is written does not."
    base, of = spec_hash(SPEC, "pixels"), lambda **change: (monkeypatch.setitem(BUDGETS, SPEC.budget, dataclasses.replace(preset, **change)), spec_hash(SPEC, "pixels"))[1]
    preset = BUDGETS[SPEC.budget]
    assert of(max_norm=7.) != base and of(weight_decay=0.5) != base and of(checkpoint_seconds=99.) == base
    spec = RunSpec(method="gpvae"); plain = spec_hash(spec, "pixels")
    assert spec_hash(RunSpec(method="gpvae", settings=(("temperature", 1.),)), "pixels") == plain
    monkeypatch.setitem(METHODS, "gpvae", (METHODS["gpvae"][0], {"temperature": 2.}))
    assert spec_hash(spec, "pixels") != plain

def test_what_came_later_changes_no_older_name():
    "The names of runs whose rows are committed, made before some of the settings existed."
    assert spec_hash(RunSpec("static_mnist", "gpvae", 20, 0, "cpu", "bernoulli", 10_000, "static", (("milestones", ()),)), "pixels") == "d0ed4ff15c99"
    plain = RunSpec(method="gpvae")
    for key, value in (("warm_start", "vae"), ("own_features", True), ("white", 0.1), ("n_draws", 2)):
        assert spec_hash(dataclasses.replace(plain, settings=((key, value),)), "pixels") != spec_hash(plain, "pixels")
        assert spec_hash(dataclasses.replace(plain, settings=((key, LATER[key]),)), "pixels") == spec_hash(plain, "pixels")

def test_warm_start_begins_with_the_other_runs_weights(runs, monkeypatch):
    first, begun = go(runs, method="vae", settings=(("hidden", (16, 16)), ("n_test", 50), ("milestones", (2.,)))), {} # what the two have in common
    def remember(model, *args): begun.update({k: v.clone() for k, v in model.state_dict().items()}); return train(model, *args)
    train = gpvae.run.train
    monkeypatch.setattr("gpvae.run.train", remember)
    go(runs, method="gpvae", settings=(*SETTINGS, ("milestones", (2.,)), ("warm_start", "vae")))
    for k, v in load_model(first.folder).state_dict().items(): assert torch.equal(begun[k], v)

@pytest.mark.parametrize("method, start, message", [("vae", "gpvae", "no place for its encoder"), ("vae", "vae", "unknown"), ("gpvae", "vea", "did you mean 'vae'")])
def test_warm_start_that_cannot_be(runs, method, start, message):
    with pytest.raises(InputError, match=message): go(runs, method=method, settings=(*SETTINGS, ("warm_start", start)))

def test_defaults_and_their_explicit_values_are_one_run():
    (a, x), (b, y) = (load_images(s) for s in (SPEC, dataclasses.replace(SPEC, likelihood="bernoulli", binarisation="fixed")))
    assert spec_hash(a, x.checksum) == spec_hash(b, y.checksum)

def test_spec_is_read_back(runs):
    r = go(runs)
    spec = read_spec(r.folder)
    assert dict(spec.settings) == dict(SETTINGS) and spec.binarisation == "fixed" and spec_hash(spec, load("digits").checksum) == r.folder.name

def test_settings_of_the_command_line():
    texts = ("lr=1e-3", "hidden=(8, 8)", "covariance=full", "n_valid=None", "learn_prior_scale=True")
    assert [parse_setting(t)[1] for t in texts] == [1e-3, (8, 8), "full", None, True]
    s = settings_of(SPEC)
    assert s == dataclasses.replace(BUDGETS["smoke"], n_train=200, **dict(SETTINGS))

def test_fewer_images_are_the_first_of_more():
    small, large = (load_images(dataclasses.replace(SPEC, n_train=n))[1] for n in (100, 300))
    assert torch.equal(small.x_train, large.x_train[:100]) and torch.equal(small.x_test, large.x_test) and small.checksum == large.checksum

# --- commands -----------------------------------------------------------------------------------------------------------------------------------

def test_command_prints_the_row_and_equals_the_function(runs, capsys):
    args = ["--method", "vae", "--z_dim", "4", "--n_train", "200", "--device", "cpu", *(w for k, v in SETTINGS for w in ("--set", f"{k}={v}"))]
    assert run_command([*args, "--quiet"]) == 0
    out, err = capsys.readouterr()
    row = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split(maxsplit=1)) == 2)
    expected = go(runs.parent / "other").metrics
    assert err == "" and float(row["iwae"]) == expected["iwae"] and row["method"] == "vae" and row["folder"].startswith(str(runs))

def test_progress_is_shown_unless_quiet(runs, capsys):
    go(runs)
    assert capsys.readouterr().err == ""
    run(dataclasses.replace(SPEC, seed=1), runs, "cpu")
    err = capsys.readouterr().err
    assert all(word in err for word in ("vae seed 1", "bound=", "kl=", "active=", "img/s", "IWAE-5"))

@pytest.mark.parametrize("command", ["run", "reproduce", "gap"])
def test_help(command):
    done = subprocess.run([sys.executable, "-m", "gpvae.commands", command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and f"usage: gpvae_{command}" in done.stdout and "--dataset" in done.stdout and "--budget" in done.stdout

def test_timing_is_written_beside_the_metrics(runs):
    r = go(runs)
    times = time_run(r.folder, "cpu", repeats=3)
    again = go(runs)
    assert 0 < times["infer_ms_one"] and 0 < times["infer_ms_batch"] and {k: again.metrics[k] for k in times} == times
    assert without_times(again.metrics) == without_times(r.metrics) and "commit" in again.metrics

def test_runs_folder(monkeypatch, tmp_path):
    from gpvae.run import runs_root
    monkeypatch.setenv("GPVAE_RUNS", str(tmp_path))
    assert runs_root() == tmp_path and runs_root("/elsewhere").as_posix() == "/elsewhere"
    monkeypatch.delenv("GPVAE_RUNS")
    assert not str(runs_root()).startswith(os.getcwd())
