"From a specification to a row: what is written, what is reused, what names a run."
import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gpvae.checks import InputError
from gpvae.data import load, prepare_splits
from gpvae.files import read_json, read_tensors, write_json
from gpvae.evaluation.iwae import evaluate
from gpvae.study.commands import run_command
from gpvae.study.run import COLUMNS, RunResult, _components, load_model, read_spec, run, run_images, runs_root, time_run, widen_run
from gpvae.study.spec import (BUDGETS, METHODS, PROTOCOL, RunSpec, Settings, build_model, check_spec, load_images, method_options, parse_setting, settings_of, spec_hash,
                              train_config)

SETTINGS = (("epochs", 3), ("hidden", (16, 16)), ("n_test", 50), ("k", 5), ("kl_warmup", 1))
SPEC = RunSpec(method="vae", z_dim=4, n_train=200, settings=SETTINGS)

def go(runs, **changes): return run(dataclasses.replace(SPEC, **changes), runs, "cpu", bar=False)
def without_times(metrics): return {k: v for k, v in metrics.items() if k not in ("train_seconds", "epoch_seconds", "peak_mb", "commit", "infer_ms_batch", "infer_ms_one", "step_ms")}

@pytest.mark.parametrize("method", METHODS)
def test_row_and_numbers_of_each_image(runs, method):
    r = go(runs, method=method)
    m = r.metrics
    written = read_json(r.folder / "metrics.json")
    assert set(COLUMNS) <= set(m) and written | {k: m[k] for k in ("width", "iwae_widened")} == m and written["width"] is None
    asked = dict(dataset="digits", method=method, z_dim=4, seed=0, likelihood="bernoulli", budget="smoke", n_train=200, binarisation="fixed", iwae_k=5, epochs=3, protocol=PROTOCOL, inflation=1, checksum=load("digits").checksum[:12])
    assert {k: m[k] for k in asked} == asked and m["spec"] == r.folder.name
    assert -64 < m["elbo"] < m["iwae"] < 0 and 1 <= m["ess"] <= 5 and 0 <= m["active_units"] <= 4 and m["train_seconds"] > 0 and m["peak_mb"] > 50
    assert len(r.per_image) >= 4 and all(v.shape == (50,) and v.dtype == torch.float32 and v.isfinite().all() for v in r.per_image.values())
    for name in ("elbo", "iwae", "ess"): assert m[name] == pytest.approx(r.per_image[name].double().mean().item(), rel=1e-5)
    assert m["iwae_se"] == pytest.approx(r.per_image["iwae"].double().std().item() / 50**0.5, rel=1e-5)
    assert {p.name for p in r.folder.iterdir()} - {".lock"} == {"spec.json", "checkpoint.safetensors", "metrics.json", "per_image.safetensors", "widened.safetensors"}

def test_width_of_the_proposal_is_chosen_on_validation_images(runs, monkeypatch):
    "By IWAE of the first 200; judged on test images, beside the same noise. A run that asks for a width is left alone."
    r = go(runs)
    model, splits = load_model(r.folder), prepare_splits(load_images(SPEC)[1], "fixed")
    tried = {w: evaluate(model, splits.valid[:200], 5, inflation=w).iwae.mean() for w in (1., 1.4, 2., 3., 4.5)}
    assert r.metrics["width"] == max(tried, key=tried.get)
    seen, path = [], r.folder / "widened.safetensors"
    def by_width(model, x, k, binarisation, widths):
        seen.append(x)
        return {w: torch.full((len(x),), -abs(w - 3)).numpy() for w in widths}
    before = path.read_bytes()
    path.unlink()
    assert RunResult.open(r.folder).metrics["width"] is None
    monkeypatch.setattr("gpvae.study.run.iwae_by_width", by_width)
    widen_run(r.folder, "cpu")
    assert len(seen) == 1 and torch.equal(seen[0], splits.valid[:200])
    wide, m = evaluate(model, splits.test[:50], 5, inflation=3.).iwae, RunResult.open(r.folder)
    assert m.metrics["width"] == 3 and torch.equal(wide.float(), m.per_image["iwae_widened"])
    assert m.metrics["iwae_widened"] == pytest.approx(wide.mean().item(), abs=1e-4) and m.metrics["iwae"] == r.metrics["iwae"]
    widen_run(r.folder, "cpu") # is there already
    asked = go(runs, settings=(*SETTINGS, ("inflation", 2.)))
    widen_run(asked.folder, "cpu")
    assert len(seen) == 1 and asked.metrics["width"] is None and not (asked.folder / path.name).exists()
    path.unlink()
    monkeypatch.undo()
    widen_run(r.folder, "cpu")
    assert path.read_bytes() == before

def test_uncertainty_of_each_image_is_kept(runs):
    r = go(runs, method="gpvae")
    names = {"uncertainty_f", "uncertainty_g", "uncertainty_f_relative"}
    assert names <= set(r.per_image) and all((r.per_image[n] > 0).all() for n in names)
    assert set(r.metrics["modes"]) == {"mean", "marginal", "mixture"} and r.metrics["modes"]["marginal"]["elbo"] == pytest.approx(r.metrics["elbo"], abs=1e-6)

def test_saved_model_gives_the_reported_numbers(runs):
    r = go(runs, method="gpvae")
    spec, data = run_images(r.folder)
    x = prepare_splits(data, spec.binarisation).test[:50]
    again = evaluate(load_model(r.folder), x, 5)
    for name in ("elbo", "iwae", "ess"): assert torch.equal(getattr(again, name).float(), r.per_image[name])

def test_finished_run_is_not_trained_again(runs, monkeypatch):
    first = go(runs)
    def fail(*args): raise AssertionError("trained or evaluated again")
    for name in ("_train_run", "_evaluate_run"): monkeypatch.setattr(f"gpvae.study.run.{name}", fail)
    second = go(runs)
    assert second.metrics == first.metrics and second.folder == first.folder
    for name, value in first.per_image.items(): assert torch.equal(value, second.per_image[name])

def test_same_seed_same_bits_and_another_seed_another_model(tmp_path):
    a, b, c = go(tmp_path / "a"), go(tmp_path / "b"), go(tmp_path / "c", seed=1)
    assert without_times(a.metrics) == without_times(b.metrics) and a.metrics["iwae"] != c.metrics["iwae"]
    for name in ("per_image.safetensors", "checkpoint.safetensors"):
        x, y = (read_tensors(r.folder / name)[0] for r in (a, b))
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)

def test_other_work_in_the_process_does_not_matter(tmp_path):
    a = go(tmp_path / "a")
    torch.manual_seed(99); torch.randn(7)
    assert without_times(go(tmp_path / "b").metrics) == without_times(a.metrics)

def test_evaluation_that_was_cut_short_is_done_again(runs, monkeypatch):
    whole = go(runs / "whole")
    def stop(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr("gpvae.study.run._evaluate_modes", stop) # after per_image is written
        with pytest.raises(KeyboardInterrupt): go(runs / "cut")
    folder = runs / "cut" / whole.folder.name
    assert (folder / "per_image.safetensors").exists() and not (folder / "metrics.json").exists()
    assert without_times(go(runs / "cut").metrics) == without_times(whole.metrics)

# --- names -----------------------------------------------------------------------------------------------------------------------------------

def test_hash_covers_specification_pixels_and_protocol(monkeypatch):
    base = spec_hash(SPEC, "pixels")
    others = [dict(dataset="mnist"), dict(method="gpvae"), dict(z_dim=5), dict(seed=1), dict(budget="cpu"), dict(likelihood="gaussian"), dict(n_train=100),
              dict(binarisation="static"), dict(settings=()), dict(settings=(*SETTINGS, ("lr", 0.1))), dict(settings=(*SETTINGS, ("precision", "bfloat16")))]
    hashes = [spec_hash(dataclasses.replace(SPEC, **o), "pixels") for o in others] + [spec_hash(SPEC, "other pixels")]
    with monkeypatch.context() as m:
        m.setattr("gpvae.study.spec.PROTOCOL", PROTOCOL + 1)
        hashes.append(spec_hash(SPEC, "pixels"))
    assert len({base, *hashes}) == len(hashes) + 1 and len(base) == 12 and set(base) <= set("0123456789abcdef")
    assert {f.name for f in dataclasses.fields(SPEC)} == set().union(*others) # no field is forgotten here
    assert spec_hash(dataclasses.replace(SPEC, settings=SETTINGS[::-1]), "pixels") == base
    assert spec_hash(dataclasses.replace(SPEC, settings=(*SETTINGS, ("precision", "float32"))), "pixels") == base

def test_hash_covers_what_a_preset_says(monkeypatch):
    "A budget whose content changes, and a method's default, name other runs; how often a checkpoint is written does not."
    base, of = spec_hash(SPEC, "pixels"), lambda **change: (monkeypatch.setitem(BUDGETS, SPEC.budget, dataclasses.replace(preset, **change)), spec_hash(SPEC, "pixels"))[1]
    preset = BUDGETS[SPEC.budget]
    assert of(max_norm=7.) != base and of(weight_decay=0.5) != base and of(checkpoint_seconds=99.) == base
    spec, method = RunSpec(method="gpvae"), METHODS["gpvae"]
    plain = spec_hash(spec, "pixels")
    assert spec_hash(RunSpec(method="gpvae", settings=(("temperature", 1.),)), "pixels") == plain
    monkeypatch.setitem(METHODS, "gpvae", method._replace(options={"temperature": 2.}))
    assert spec_hash(spec, "pixels") != plain

GOLDEN = { # names of runs whose rows are committed, with the first digits of the pixels' checksum
    "f9dbe4705f41": RunSpec("digits", "vae", 10, 0, "smoke", "bernoulli", 1300, "fixed"),
    "5b20e2053773": RunSpec("digits", "gpvae", 10, 0, "smoke", "bernoulli", 1300, "fixed"),
    "ee8427403711": RunSpec("digits", "sa-4", 20, 2, "cpu", "bernoulli", 1000, "stochastic", (("milestones", (9, 30)), ("kl_warmup", 5), ("step_size", 1), ("weight_decay", 0.2))),
}
DEFAULTS = { # of the encoders' classes; an option that is not here may come, with a default that changes nothing
    "vae": dict(dropout=0.),
    "gpvae": dict(covariance="diagonal", features="standardised", prior_scale=1., learn_prior_scale=False, temperature=1., mode="marginal", n_mixture=10, own_features=False),
    "vlae": dict(n_solves=1, damping=0.5),
    "iaf-1": dict(flows=1, flow_width=200, context_width=50, forget_bias=2.),
    "hf-1": dict(reflections=1),
    "me-2": dict(n_components=5, spread=0.1),
}
SETTINGS_OF_PROTOCOL_3 = dict(
    n_train=10_000, n_valid=2000, n_test=None, network="auto", hidden=(500, 500), epochs=80, batch_size=128, lr=1e-3, milestones=(), lr_factor=10 ** -0.5, weight_decay=0.2,
    max_norm=100., kl_warmup=40, noise_warmup=0, patience=None, n_samples=1, checkpoint_seconds=5., k=100, inflation=1.)

@pytest.mark.parametrize("name, spec", GOLDEN.items())
def test_names_that_are_in_use_stay(name, spec):
    "Whoever breaks this raises the protocol instead: a name belongs to one result."
    assert PROTOCOL == 3 and spec_hash(spec, load("digits").checksum) == name

def test_defaults_that_names_leave_out_stay():
    "A name says nothing about a value that equals the default, so a default that changes needs a new protocol."
    assert PROTOCOL == 3 and SETTINGS_OF_PROTOCOL_3.items() <= dataclasses.asdict(Settings()).items()
    for method, options in DEFAULTS.items(): assert options.items() <= method_options(method).items(), method

def test_a_new_option_changes_no_name(monkeypatch):
    spec = RunSpec(method="vae")
    before, method = spec_hash(spec, "pixels"), METHODS["vae"]
    def later(trunk, h_dim, z_dim, dropout=0., novelty=7): return method.encoder(trunk, h_dim, z_dim, dropout)
    monkeypatch.setitem(METHODS, "vae", method._replace(encoder=later))
    assert spec_hash(spec, "pixels") == before != spec_hash(dataclasses.replace(spec, settings=(("novelty", 8),)), "pixels")

def test_the_name_of_the_budget_is_no_part_of_the_name(monkeypatch):
    monkeypatch.setitem(BUDGETS, "another", BUDGETS["smoke"])
    assert spec_hash(dataclasses.replace(SPEC, budget="another"), "pixels") == spec_hash(SPEC, "pixels")

def test_numbers_of_one_value_are_one_setting():
    a, b = (spec_hash(dataclasses.replace(SPEC, settings=(("kl_warmup", k), ("milestones", (k, k + 1)))), "pixels") for k in (3, 3.))
    assert a == b

def test_training_follows_the_specification():
    config = train_config(dataclasses.replace(SPEC, seed=5))
    assert (config.seed, config.epochs, config.weight_decay) == (5, 3, BUDGETS["smoke"].weight_decay)

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

def test_a_row_is_named_as_it_was_asked_for(runs):
    "Another way to say the same specification opens the same run; the row has the words of whoever asks."
    first, again = go(runs), go(runs, settings=(*SETTINGS, ("lr", 1e-3)))
    assert again.folder == first.folder and "lr=0.001" not in first.metrics["settings"] and "lr=0.001" in again.metrics["settings"]

def test_numbers_of_numpy_are_taken(runs):
    spec = dataclasses.replace(SPEC, z_dim=np.int64(4), seed=np.int32(0), n_train=np.int64(200), settings=(*SETTINGS, ("lr", np.float64(1e-3))))
    assert run(spec, runs, "cpu", bar=False).folder == go(runs).folder

def test_a_gaussian_likelihood_sees_grey_pixels():
    assert [load_images(RunSpec("digits", likelihood=kind))[0].binarisation for kind in ("gaussian", "bernoulli")] == ["none", "fixed"]

@pytest.mark.parametrize("key, value", [("kl_warmup", 0.5), ("kl_warmup", 0), ("lr_factor", 1.), ("n_valid", None), ("patience", None), ("milestones", (1, 2.5)), ("hidden", (8,)), ("weight_decay", 0)])
def test_legitimate_settings(key, value): check_spec(RunSpec(method="vae", settings=((key, value),)))

# --- own images and own folders -----------------------------------------------------------------------------------------------------------------

@pytest.fixture
def own_digits(tmp_path, monkeypatch):
    "An image set of one's own that has the name of a known one."
    monkeypatch.setenv("GPVAE_DATA", str(tmp_path / "data"))
    pixels = np.random.RandomState(0).randint(0, 256, (300, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", x_train=pixels[:250], x_test=pixels[250:])
    return tmp_path / "digits.npz"

def test_own_images_are_never_those_of_the_same_name(runs, own_digits):
    own, known = go(runs, dataset=str(own_digits), n_train=None, z_dim=2), go(runs, z_dim=2)
    assert own.metrics["dataset"] == known.metrics["dataset"] == "digits" and own.metrics["checksum"] != known.metrics["checksum"] and own.folder != known.folder
    spec, data = run_images(own.folder)
    assert spec.dataset == str(own_digits) and data.checksum.startswith(own.metrics["checksum"]) and read_json(own.folder / "spec.json")["source"] == str(own_digits)
    x = prepare_splits(data, spec.binarisation).test
    assert torch.equal(evaluate(load_model(own.folder), x, 5).elbo.float(), own.per_image["elbo"])
    assert time_run(own.folder, "cpu", repeats=1)["infer_ms_one"] > 0

def test_a_run_is_not_opened_with_other_images(runs, own_digits):
    own = go(runs, dataset=str(own_digits), n_train=None, z_dim=2)
    pixels = np.random.RandomState(1).randint(0, 256, (300, 8, 8, 1)).astype(np.uint8)
    np.savez(own_digits, x_train=pixels[:250], x_test=pixels[250:])
    for call in (run_images, lambda f: time_run(f, "cpu", 1)):
        with pytest.raises(InputError, match="was trained on other images than"): call(own.folder)
    own_digits.unlink()
    with pytest.raises(InputError, match="there is no such file"): run_images(own.folder)

def test_a_folder_under_another_name_or_of_another_protocol_is_refused(runs, tmp_path):
    import shutil
    folder = go(runs).folder
    other = shutil.copytree(folder, tmp_path / "0123456789ab")
    for call in (RunResult.open, read_spec, load_model, time_run):
        with pytest.raises(InputError, match=f"holds run {folder.name}: rename"): call(other)
    content = read_json(folder / "spec.json")
    write_json(folder / "spec.json", content | {"protocol": PROTOCOL - 1})
    with pytest.raises(InputError, match=f"is of protocol {PROTOCOL - 1}, this version has {PROTOCOL}"): go(runs)

FILES = ("spec.json", "metrics.json", "per_image.safetensors", "checkpoint.safetensors", "timing.json")

@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_run_is_refused(runs, name):
    import shutil
    a, b = go(runs), go(runs, seed=1)
    for r in (a, b): time_run(r.folder, "cpu", repeats=1)
    shutil.copy(b.folder / name, a.folder / name)
    with pytest.raises(InputError, match="belongs to run|holds run"): RunResult.open(a.folder) and load_model(a.folder)

@pytest.mark.parametrize("name", FILES)
def test_damage_is_one_line_that_says_what_to_do(runs, name):
    folder = go(runs).folder
    time_run(folder, "cpu", repeats=1)
    whole, random = (folder / name).read_bytes(), np.random.RandomState(0)
    for place in random.randint(0, len(whole), 12):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1 << random.randint(8)]) + whole[place + 1:]):
            (folder / name).write_bytes(damaged)
            try: r, model = RunResult.open(folder), load_model(folder)
            except InputError as e: assert str(folder / name) in str(e) and "\n" not in str(e) and ("delete" in str(e) or "run again" in str(e))
            else: # JSON has more than one spelling of a content
                assert name.endswith(".json")
    (folder / name).unlink()
    again = go(runs)
    assert without_times(again.metrics)["iwae"] == without_times(go(runs.parent / "other").metrics)["iwae"]

def test_times_of_another_device_are_refused(runs, monkeypatch):
    r = go(runs)
    with monkeypatch.context() as m:
        m.setattr("gpvae.study.run.device_name", lambda device: "another machine")
        with pytest.raises(InputError, match="was made on cpu .*, this is another machine: time it there"): time_run(r.folder, "cpu", repeats=1)
    time_run(r.folder, "cpu", repeats=1)
    times = read_json(r.folder / "timing.json")
    write_json(r.folder / "timing.json", times | {"device": "another machine"})
    with pytest.raises(InputError, match="was measured on another machine, the run was made on cpu"): RunResult.open(r.folder)

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
    code = f"import sys; from gpvae.study.commands import {command}_command as c\ntry: c(['--help'])\nfinally: assert not {{'torch', 'numpy', 'pandas'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and f"usage: gpvae_{command}" in done.stdout and "--dataset" in done.stdout and ("else smoke)" in " ".join(done.stdout.split()) or "(default: smoke)" in done.stdout)

def test_commands_and_functions_have_the_same_defaults():
    from gpvae.study import commands
    from gpvae.study.measure import COUNTS, GapSettings
    args, spec = commands._run_parser().parse_args([]), RunSpec()
    assert all(getattr(args, f.name) == getattr(spec, f.name) for f in dataclasses.fields(spec) if f.name != "settings")
    gap, settings = commands._gap_parser().parse_args([]), GapSettings()
    assert {k: getattr(gap, k) for k in COUNTS} == COUNTS and gap.refine_steps == settings.refine_steps
    assert (gap.temperatures, gap.chains, gap.start) == (settings.annealing.temperatures, settings.annealing.chains, settings.annealing.start)

@pytest.mark.parametrize("argv, message", [(["--seed", "x"], "invalid int value: 'x'"), (["--sede", "1"], "unrecognized arguments: --sede 1"), (["--z", "3"], "unrecognized arguments")])
def test_a_wrong_option_is_one_line(capsys, argv, message):
    with pytest.raises(SystemExit) as e: run_command(argv)
    err = capsys.readouterr().err
    assert e.value.code == 2 and message in err and err.startswith("gpvae_run: ") and err.count("\n") == 1

def test_timing_is_written_beside_the_metrics(runs):
    r = go(runs)
    times = time_run(r.folder, "cpu", repeats=3)
    again = go(runs)
    assert 0 < times["infer_ms_one"] and 0 < times["infer_ms_batch"] and {k: again.metrics[k] for k in times} == times
    assert without_times(again.metrics) == without_times(r.metrics) and "commit" in again.metrics

def test_runs_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GPVAE_RUNS", str(tmp_path))
    assert runs_root() == tmp_path and runs_root("/elsewhere").as_posix() == "/elsewhere"
    monkeypatch.delenv("GPVAE_RUNS")
    assert not str(runs_root()).startswith(os.getcwd())

def test_a_mixture_says_how_it_uses_its_components():
    "Of some hundred images; other posteriors are asked for one image alone and say nothing."
    x, asked = (255 * (torch.rand(600, 1, 8, 8) < 0.5)).byte(), []
    def found(method):
        model = build_model(RunSpec(method=method, z_dim=3, likelihood="bernoulli", settings=(("hidden", (8, 8)),)), (1, 8, 8)).eval()
        model.encoder.register_forward_pre_hook(lambda module, args: asked.append(len(args[0])))
        return _components(model, x, "static")
    equal = found("me-3")
    assert equal["weights"] == "0.333 0.333 0.333" and 0 <= equal["information"] < math.log(3) and asked == [1, 500]
    asked.clear()
    assert found("vae") == {"weights": None, "information": None} and asked == [1]
