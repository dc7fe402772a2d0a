"A specification is resolved once, into a configuration whose name covers all that decides the result."

import dataclasses

import numpy as np
import pytest
import torch

from gpvae.checks import InputError
from gpvae.data import load
from gpvae.files import read_json, write_json
from gpvae.study import config as module
from gpvae.study.config import (PROTOCOL, RunSpec, build_model, config_from_json, config_to_json, load_images,
                                refit_of, resolve, resolve_all)
from gpvae.study.methods import METHODS, encoder_options
from gpvae.study.settings import BUDGETS, parse_setting

SETTINGS = dict(epochs=3, hidden=(16, 16), n_train=200, n_test=50, k=5, kl_warmup=1)
SPEC = RunSpec(method="vae", z_dim=4, settings=SETTINGS)
DIGITS = load("digits")


def name_of(spec=SPEC, **changes):
    "The id of a specification with changes."
    return resolve(dataclasses.replace(spec, **changes), DIGITS).id


def test_the_name_covers_specification_pixels_and_protocol(monkeypatch):
    others = [dict(method="gpvae"), dict(z_dim=5), dict(seed=1), dict(budget="cpu"),
              dict(likelihood="gaussian"), dict(binarisation="stochastic"), dict(settings={}),
              dict(parent=SPEC)]
    others += [dict(settings=SETTINGS | s)
               for s in (dict(lr=0.1), dict(precision="bfloat16"), dict(n_train=100), dict(natural_step=0.5),
                         dict(n_valid=100))]
    names = [name_of(**other) for other in others]
    pixels = dataclasses.replace(DIGITS, checksum="0" * 64)
    names.append(resolve(SPEC, pixels).id)
    names.append(dataclasses.replace(resolve(SPEC, DIGITS), protocol=PROTOCOL + 1).id)
    assert len({name_of(), *names}) == len(names) + 1
    fields = {f.name for f in dataclasses.fields(SPEC)} - {"dataset"}
    assert fields == set().union(*others)  # no field is forgotten here
    assert len(name_of()) == 12 and set(name_of()) <= set("0123456789abcdef")


@pytest.mark.parametrize("change", [
    dict(settings=dict(reversed(SETTINGS.items()))),
    dict(settings=tuple(SETTINGS.items())),
    dict(settings=SETTINGS | dict(kl_warmup=1.0)),
    dict(settings=SETTINGS | dict(precision="float32")),
    dict(settings=SETTINGS | dict(checkpoint_seconds=99.0)),
    dict(settings=SETTINGS | dict(hidden=[16, 16])),
    dict(z_dim=np.int64(4), seed=np.int32(0), settings=SETTINGS | dict(lr=np.float64(1e-3))),
    dict(likelihood="bernoulli", binarisation="fixed"),
])
def test_other_words_for_the_same_run_give_the_same_name(change):
    assert name_of(**change) == name_of()


def test_a_default_that_is_written_out_gives_the_same_name():
    settings = {name: value for name, value in SETTINGS.items() if name != "kl_warmup"}
    names = {name_of(settings=settings | more) for more in ({}, dict(kl_warmup=20), dict(kl_warmup=20.0))}
    assert len(names) == 1 and type(resolve(SPEC, DIGITS).train.noise_warmup) is float


def test_the_name_covers_what_a_budget_and_a_method_say(monkeypatch):
    plain, budget = name_of(), BUDGETS["smoke"]
    train = dataclasses.replace(budget.train, max_norm=7.0)
    monkeypatch.setitem(BUDGETS, "smoke", dataclasses.replace(budget, train=train))
    assert name_of() != plain
    monkeypatch.setitem(BUDGETS, "smoke", budget)
    gp = name_of(method="gpvae")
    monkeypatch.setitem(METHODS, "gpvae", METHODS["gpvae"]._replace(options={"temperature": 2.0}))
    assert name_of(method="gpvae") != gp


def test_nothing_is_left_open():
    config = resolve(RunSpec())
    assert (config.likelihood, config.binarisation, config.x_shape) == ("bernoulli", "fixed", (1, 8, 8))
    assert (config.data.n_train, config.data.n_valid, config.data.n_test) == (1300, 200, 297)
    assert config.options == encoder_options("gpvae") and config.train.seed == 0 and config.parent is None
    assert resolve(RunSpec(likelihood="gaussian")).binarisation == "none"
    assert resolve(RunSpec(seed=5, method="sa-4", budget="cpu")).train.weight_decay == 0.4  # the family's own
    assert resolve(RunSpec(method="sa-4", settings=dict(weight_decay=0.1))).train.weight_decay == 0.1


def test_a_configuration_is_written_and_read(tmp_path):
    config = resolve(refit_of(SPEC, "gpvae", epochs=2).change(natural_step=0.5), DIGITS)
    write_json(tmp_path / "config.json", config_to_json(config))
    content = read_json(tmp_path / "config.json")
    content.pop("sha256", None)
    again = config_from_json(content)
    assert again == config and again.id == config.id and again.parent.id == name_of()


def test_a_specification_is_written_and_read():
    spec = refit_of(SPEC, "gpvae")
    assert RunSpec.from_json(spec.to_json()) == spec
    with pytest.raises(InputError, match="did you mean 'method'"):
        RunSpec.from_json({"methods": "vae"})


def test_the_line_that_names_a_run_in_results_says_what_is_changed_alone():
    assert (RunSpec(z_dim=10, settings=dict(lr=1e-3, epochs=7)).text()
            == "digits gpvae z=10 seed=0 smoke bernoulli fixed epochs=7")
    assert RunSpec("a/own.npz").text() == "own gpvae z=20 seed=0 smoke auto auto"
    assert refit_of(SPEC).text().endswith(f" | decoder of {SPEC.text()}")
    assert (RunSpec(method="sa-4", budget="cpu", settings=dict(weight_decay=0.4)).text()
            == RunSpec(method="sa-4", budget="cpu").text())


def test_judging_differently_is_one_training():
    judged = SPEC.change(natural_step=0.5)
    config = resolve(judged, DIGITS)
    assert config.id != name_of() == config.trained.id and config.trained.spec.text() == SPEC.text()


def test_a_refit_has_the_decoder_of_its_parent():
    config = resolve(refit_of(SPEC.change(natural_step=0.5), "full", n_train=100), DIGITS)
    assert config.parent.id == name_of() and config.train.dreams == 0.5 and config.data.n_train == 100
    assert config.parent.data.n_train == 200 and config.model == config.parent.model


@pytest.mark.parametrize("spec, message",
                         [(dict(method="gpvea"), "did you mean 'gpvae'"),
                          (dict(budget="cpuu"), "did you mean 'cpu'"),
                          (dict(likelihood="poison"), "likelihood 'poison' is unknown"),
                          (dict(z_dim=0), "z_dim is 0"),
                          (dict(z_dim=100_000_000), "at most 10000"),
                          (dict(seed=-1), "seed is -1"),
                          (dict(seed=10**13), "seed is"),
                          (dict(settings=dict(epoch=3)), "did you mean 'epochs'"),
                          (dict(settings=dict(epochs="3")), "epochs='3': expected something like"),
                          (dict(settings=dict(epochs=True)), "epochs=True"),
                          (dict(settings=dict(epochs=0)), "epochs is 0"),
                          (dict(settings=dict(lr=float("nan"))), "lr"),
                          (dict(settings=dict(hidden=())), "name at least one width"),
                          (dict(settings=dict(hidden=500)), "hidden=500"),
                          (dict(settings=dict(n_train=5000)), "pass 1 to 1300"),
                          (dict(settings=dict(milestones=(5.0, 3.0))), "must increase"),
                          (dict(settings=dict(k=0)), "k is 0"),
                          (dict(settings=dict(network="mpl")), "did you mean 'mlp'"),
                          (dict(settings=dict(natural_step=2)), "natural_step is 2.0"),
                          (dict(binarisation="none"), "binary pixels"),
                          (dict(settings=(("lr", 1.0), ("lr", 2.0))), "given 2 times"),
                          (dict(settings="lr"), "pass pairs"),
                          (dict(method="gpvae", settings=dict(temperature="hot")), "temperature='hot'"),
                          (dict(settings=dict(temperature=1.0)), "temperature"),
                          (dict(dataset="digit"), "did you mean 'digits'"),
                          (dict(parent=RunSpec(method="vea", z_dim=4)), "frozen: method"),
                          (dict(parent=RunSpec(method="vae", z_dim=5)),
                           "z_dim is 4, the decoder's run has 5"),
                          (dict(parent=RunSpec(method="vae", z_dim=4)), "hidden is"),
                          (dict(parent=refit_of(SPEC)), "is frozen itself")])
def test_what_cannot_be_is_one_line(spec, message):
    with pytest.raises(InputError, match=message) as e:
        resolve(dataclasses.replace(SPEC, **spec))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("settings",
                         [dict(kl_warmup=0.5), dict(n_valid=None), dict(patience=None),
                          dict(milestones=(1, 2.5)), dict(hidden=(7,)), dict(trunk=(9, 8)),
                          dict(natural_step=0.5), dict(dreams=0.5), dict(network="mlp")])
def test_legitimate_settings(settings):
    assert build_model(resolve(SPEC.change(**settings), DIGITS)).z_dim == 4


def test_settings_of_the_command_line():
    texts = ("lr=1e-3", "hidden=(8, 8)", "covariance=full", "n_valid=None", "learn_prior_scale=True", "a=b=c")
    assert [parse_setting(t)[1] for t in texts] == [1e-3, (8, 8), "full", None, True, "b=c"]
    with pytest.raises(InputError, match="is not key=value"):
        parse_setting("lr")


def test_a_set_is_read_once_for_a_grid(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "load", lambda name: calls.append(name) or load(name))
    specs = [dataclasses.replace(SPEC, seed=s, parent=SPEC if s == 0 else None) for s in range(5)]
    assert [c.id for c in resolve_all(specs)] == [name_of(s) for s in specs] and calls == ["digits"]


def test_images_are_cut_to_the_numbers_of_the_run_and_must_be_the_same():
    config = resolve(SPEC, DIGITS)
    data = load_images(config)
    assert [len(x) for x in (data.x_train, data.x_valid, data.x_test)] == [200, 200, 50]
    assert torch.equal(data.x_train, DIGITS.x_train[:200])
    with pytest.raises(InputError, match="holds other images than the run was made with"):
        load_images(dataclasses.replace(config, checksum="0" * 64))


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_the_first_weights(method):
    states = [build_model(resolve(dataclasses.replace(SPEC, method=method, seed=s), DIGITS)).state_dict()
              for s in (0, 0, 1)]
    same = [all(torch.equal(states[0][k], other[k]) for k in states[0]) for other in states[1:]]
    assert same == [True, False]
