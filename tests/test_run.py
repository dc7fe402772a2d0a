"From a specification to a row: what is written, what is reused, what is refused."
import dataclasses
import os
import shutil

import numpy as np
import pytest
import torch

from gpvae.checks import InputError
from gpvae.data import load, prepare_splits
from gpvae.evaluation.iwae import evaluate
from gpvae.files import read_json, read_tensors, write_json
from gpvae.study import run as module
from gpvae.study.config import PROTOCOL, RunSpec, build_model, load_images, refit_of, resolve
from gpvae.study.methods import METHODS
from gpvae.study.run import describe_mixture, load_model, open_run, read_config, run, runs_root, time_run

SETTINGS = dict(epochs=3, hidden=(16, 16), n_train=200, n_test=50, k=5, kl_warmup=1)
SPEC = RunSpec(method="vae", z_dim=4, settings=SETTINGS)
UNSTEADY = ("train_seconds", "peak_mb", "commit", *module.TIMES)
FILES = ("config.json", "metrics.json", "per_image.safetensors", "checkpoint.safetensors", "timing.json")


def go(runs, spec=SPEC, **changes):
    "Run a specification with changes."
    return run(dataclasses.replace(spec, **changes), runs, "cpu", bar=False)


def steady(row):
    "What a row says of the result."
    return {k: v for k, v in row.items() if k not in UNSTEADY}


def test_images_of(result):
    "The test images of a run, and how batches are made of them."
    splits = prepare_splits(load_images(result.config), result.config.binarisation)
    return splits.test, splits.eval_binarisation


test_images_of.__test__ = False


@pytest.mark.parametrize("method", METHODS)
def test_row_and_numbers_of_each_image(runs, method):
    r = go(runs, method=method)
    row = r.row
    asked = dict(dataset="digits", method=method, z_dim=4, seed=0, likelihood="bernoulli", budget="smoke",
                 k=5, n_train=200, n_test=50, binarisation="fixed", epochs=3, protocol=PROTOCOL,
                 run=r.folder.name)
    assert {k: row[k] for k in asked} == asked and row["spec"] == r.config.spec.text()
    assert -64 < row["elbo"] < row["iwae"] < 0 and 1 <= row["ess"] <= 5 and 0 <= row["active_units"] <= 4
    assert row["train_seconds"] > 0 and row["peak_mb"] > 50 and len(r.history) == 3
    assert all(v.shape == (50,) and np.isfinite(v).all() for v in r.per_image.values())
    for name in ("elbo", "iwae", "ess"):
        assert row[name] == pytest.approx(r.per_image[name].astype(float).mean(), rel=1e-5)
    assert row["iwae_error"] == pytest.approx(
        r.per_image["iwae"].astype(float).std(ddof=1) / 50**0.5, rel=1e-5
    )
    shapes = {k: v.shape for k, v in r.pictures.items()}
    assert shapes == {"samples": (16, 1, 8, 8), "images": (10, 1, 8, 8), "reconstructions": (10, 1, 8, 8)}
    names = {"config.json", "checkpoint.safetensors", "metrics.json", "per_image.safetensors"}
    assert {p.name for p in r.folder.iterdir()} - {".lock"} == names


def test_saved_model_gives_the_reported_numbers(runs):
    for spec in (SPEC, dataclasses.replace(SPEC, method="gpvae"), SPEC.change(natural_step=0.5)):
        r = go(runs, spec)
        again = evaluate(load_model(r.folder), *reversed_k(test_images_of(r)))
        for name in ("elbo", "iwae", "ess"):
            assert np.array_equal(getattr(again, name).float().numpy(), r.per_image[name])


def reversed_k(images):
    "Arguments of `evaluate` after the model."
    return images[0], 5, images[1]


def test_width_of_the_proposal_is_chosen_on_validation_images(runs, monkeypatch):
    r = go(runs)
    model, splits = load_model(r.folder), prepare_splits(load_images(r.config), "fixed")
    tried = {w: evaluate(model, splits.valid[:200], 5, inflation=w).iwae.mean() for w in module.WIDTHS}
    width = max(tried, key=tried.get)
    wide = evaluate(model, splits.test, 5, inflation=width).iwae
    assert r.row["width"] == width and r.row["iwae_widened"] == pytest.approx(wide.mean().item(), abs=1e-5)


def test_uncertainty_and_modes_are_kept(runs):
    r = go(runs, method="gpvae")
    assert all((r.per_image[f"uncertainty_{n}"] > 0).all() for n in ("f", "g", "f_relative"))
    modes = {mode["mode"]: mode for mode in r.modes}
    assert set(modes) == {"mean", "marginal", "mixture"} and {m["run"] for m in r.modes} == {r.config.id}
    assert modes["marginal"]["elbo"] == pytest.approx(r.row["elbo"], abs=1e-6)


def test_finished_run_is_not_made_again(runs, monkeypatch):
    first = go(runs)
    for name in ("train_run", "evaluate_run"):
        monkeypatch.setattr(module, name, lambda *args: pytest.fail("made again"))
    second = go(runs)
    assert second.row == first.row and second.folder == first.folder and second.history == first.history
    renamed = go(runs, SPEC.change(lr=1e-3))  # other words for the same run
    assert renamed.folder == first.folder and "lr=0.001" in renamed.row["settings"]


def test_same_seed_same_bits_and_another_seed_another_model(tmp_path):
    a = go(tmp_path / "a")
    torch.manual_seed(99)  # other work in the process does not matter
    torch.randn(7)
    b, c = go(tmp_path / "b"), go(tmp_path / "c", seed=1)
    assert steady(a.row) == steady(b.row) and a.row["iwae"] != c.row["iwae"]
    for name in ("per_image.safetensors", "checkpoint.safetensors"):
        x, y = (read_tensors(r.folder / name)[0] for r in (a, b))
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("step", ["evaluate_modes", "draw_pictures", "write_json"])
def test_evaluation_that_was_cut_short_is_done_again(runs, monkeypatch, step):
    whole, original = go(runs / "whole"), getattr(module, step)

    def stop(*args):
        if step != "write_json" or args[0].name == "metrics.json":
            raise KeyboardInterrupt
        original(*args)

    with monkeypatch.context() as m:
        m.setattr(module, step, stop)
        with pytest.raises(KeyboardInterrupt):
            go(runs / "cut")
    folder = runs / "cut" / whole.folder.name
    assert (folder / "checkpoint.safetensors").exists() and not (folder / "metrics.json").exists()
    assert steady(go(runs / "cut").row) == steady(whole.row)


def test_a_refit_trains_the_encoder_alone_on_its_parent(runs):
    refitted = go(runs, refit_of(SPEC, epochs=2))
    parent = go(runs)
    assert (refitted.folder.parent / refitted.config.parent.id) == parent.folder
    before, after = load_model(parent.folder).state_dict(), load_model(refitted.folder).state_dict()
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"encoder"} and refitted.row["parent"] == SPEC.text()
    with pytest.raises(InputError, match="set start=new"):
        go(runs, refit_of(SPEC, "gpvae", epochs=1).change(trunk=(9, 9)))
    other = go(runs, refit_of(SPEC, "gpvae", epochs=1, trunk=(9, 9), start="new"))
    assert np.isfinite(other.row["elbo"])


def test_judging_differently_trains_nothing_more(runs, monkeypatch):
    plain = go(runs)
    monkeypatch.setattr(module, "train_run", lambda *args: pytest.fail("trained again"))
    stepped = go(runs, SPEC.change(natural_step=0.5))
    assert stepped.row["elbo"] > plain.row["elbo"]
    assert stepped.row["train_seconds"] == plain.row["train_seconds"]
    assert not (stepped.folder / "checkpoint.safetensors").exists()


def test_a_step_that_the_posterior_cannot_take_is_refused_before_training(runs):
    spec = dataclasses.replace(SPEC, method="iaf-1").change(natural_step=0.5)
    with pytest.raises(InputError, match="takes no natural-gradient step"):
        go(runs, spec)
    assert not (runs / resolve(spec).trained.id).exists()


def test_a_run_that_is_judged_as_usual_builds_its_model_to_train_and_to_judge_it(runs, monkeypatch):
    built = []
    monkeypatch.setattr(module, "build_model", lambda config: built.append(config.id) or build_model(config))
    go(runs)
    assert len(built) == 2


@pytest.fixture
def own_digits(tmp_path, monkeypatch):
    "An image set of one's own that has the name of a known one."
    monkeypatch.setenv("GPVAE_DATA", str(tmp_path / "data"))
    write_pixels(tmp_path / "digits.npz", 0)
    return tmp_path / "digits.npz"


def write_pixels(path, seed):
    "Random images."
    pixels = np.random.RandomState(seed).randint(0, 256, (300, 8, 8, 1)).astype(np.uint8)
    np.savez(path, x_train=pixels[:250], x_test=pixels[250:])


def test_own_images_are_never_those_of_the_same_name(runs, own_digits):
    own, known = go(runs, dataset=str(own_digits), z_dim=2), go(runs, z_dim=2)
    assert own.row["dataset"] == known.row["dataset"] == "digits" and own.folder != known.folder
    assert own.row["checksum"] != known.row["checksum"]
    again = evaluate(load_model(own.folder), *reversed_k(test_images_of(own)))
    assert np.array_equal(again.elbo.float().numpy(), own.per_image["elbo"])
    write_pixels(own_digits, 1)
    with pytest.raises(InputError, match="holds other images than the run was made with"):
        time_run(own.folder, "cpu", 1)
    assert go(runs, dataset=str(own_digits), z_dim=2).folder != own.folder


def test_a_folder_under_another_name_or_of_another_protocol_is_refused(runs, tmp_path):
    folder = go(runs).folder
    other = shutil.copytree(folder, tmp_path / "0123456789ab")
    for call in (open_run, read_config, load_model, time_run):
        with pytest.raises(InputError, match=f"holds run {folder.name}: rename"):
            call(other)
    content = read_json(folder / "config.json")
    content.pop("sha256", None)
    write_json(folder / "config.json", content | {"protocol": PROTOCOL - 1})
    with pytest.raises(InputError, match=f"is of protocol {PROTOCOL - 1}, this version has {PROTOCOL}"):
        go(runs)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_run_is_refused(runs, name):
    a, b = go(runs), go(runs, seed=1)
    for r in (a, b):
        time_run(r.folder, "cpu", repeats=1)
    shutil.copy(b.folder / name, a.folder / name)
    with pytest.raises(InputError, match="belongs to run|holds run"):
        open_run(a.folder) and load_model(a.folder)


@pytest.mark.parametrize("name", FILES)
def test_damage_is_one_line_that_says_what_to_do(runs, name):
    folder = go(runs).folder
    time_run(folder, "cpu", repeats=1)
    whole, random = (folder / name).read_bytes(), np.random.RandomState(0)
    for place in random.randint(0, len(whole), 12):
        flipped = whole[:place] + bytes([whole[place] ^ 1 << random.randint(8)]) + whole[place + 1:]
        for damaged in (whole[:place], flipped):
            (folder / name).write_bytes(damaged)
            try:
                open_run(folder), load_model(folder)
            except InputError as e:
                assert str(folder / name) in str(e) and "\n" not in str(e)
                assert "delete" in str(e) or "run again" in str(e)
            else:  # JSON has more than one spelling of a content
                assert name.endswith(".json")
    (folder / name).unlink()
    assert go(runs).row["iwae"] == go(runs.parent / "other").row["iwae"]


def test_times_are_kept_beside_the_row_and_those_of_another_machine_are_refused(runs, monkeypatch):
    r = go(runs)
    times = time_run(r.folder, "cpu", repeats=3)
    assert {k: go(runs).row[k] for k in times} == times and min(times.values()) > 0
    with monkeypatch.context() as m:
        m.setattr(module, "device_name", lambda device: "another machine")
        with pytest.raises(InputError, match="was made on cpu .*, this is another machine: time it there"):
            time_run(r.folder, "cpu", repeats=1)
    content = read_json(r.folder / "timing.json")
    content.pop("sha256", None)
    write_json(r.folder / "timing.json", content | {"machine": "another machine"})
    with pytest.raises(InputError, match="was measured on another machine"):
        open_run(r.folder)


def test_progress_is_shown_unless_quiet(runs, capsys):
    go(runs)
    assert capsys.readouterr().err == ""
    run(dataclasses.replace(SPEC, seed=1), runs, "cpu")
    err = capsys.readouterr().err
    assert all(word in err for word in ("vae seed 1", "bound=", "kl=", "active=", "img/s", "IWAE-5"))


def test_runs_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GPVAE_RUNS", str(tmp_path))
    assert runs_root() == tmp_path and runs_root("/elsewhere").as_posix() == "/elsewhere"
    monkeypatch.delenv("GPVAE_RUNS")
    assert not str(runs_root()).startswith(os.getcwd())


def test_a_mixture_says_how_it_uses_its_components():
    x, digits = (255 * (torch.rand(600, 1, 8, 8) < 0.5)).byte(), load("digits")
    found = {m: describe_mixture(build_model(resolve(RunSpec(method=m, z_dim=3), digits)).eval(), x, "static")
             for m in ("me-3", "vae")}
    assert found["me-3"]["weights"] == "0.333 0.333 0.333" and 0 <= found["me-3"]["information"] < np.log(3)
    assert found["vae"] == {"weights": None, "information": None}
