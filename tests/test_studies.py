"Studies are data: every line is another run, words from a command line make the same study, files hold it."

import dataclasses

import pytest

from gpvae.checks import InputError
from gpvae.study.config import RunSpec, merge_settings
from gpvae.study.settings import BUDGETS
from gpvae.study.studies import (DEFAULTS, Study, find_study, grid, named_studies, parse_study,
                                 preset_studies, refined_variants, replace_seed)

ALL = preset_studies() | named_studies()


@pytest.mark.parametrize("name", ALL)
def test_every_line_is_another_run_that_can_be_trained(name):
    study = find_study(name)
    texts = [spec.text() for spec in study.specs]
    assert len(set(texts)) == len(texts) == len(study.lines) and study.name == name
    assert study.reference in study.lines or study.published is not None
    settings = {}
    for line, spec in zip(study.lines, study.specs):
        merge_settings(spec)
        settings.setdefault((line, spec.z_dim, dict(spec.settings).get("n_train")),
                            set()).add(replace_seed(spec, 0).text())
    assert all(len(of_line) == 1 for of_line in settings.values())  # seeds are all that differs within a line


def test_a_study_is_written_and_read(tmp_path):
    for name in ("closing_grey", "static_mnist_published"):
        study = find_study(name)
        study.write(tmp_path / "study.json")
        assert find_study(tmp_path / "study.json") == study
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(InputError, match="study.json"):
        find_study(tmp_path / "study.json")


def test_a_grid_has_its_methods_sizes_and_seeds_whole_seeds_first():
    study = grid("digits", {"vae": 3, "gpvae": 1}, (2, 5, 2))
    assert len(study.specs) == 8 and [s.seed for s in study.specs] == sorted(s.seed for s in study.specs)
    assert {(s.method, s.z_dim) for s in study.specs if s.seed} == {("vae", 2), ("vae", 5)}
    assert {s.method for s in grid("digits", ["vae", "sa-4"], seeds=2).specs if s.seed == 1} == {"vae",
                                                                                                 "sa-4"}
    for budget, (methods, z_dim) in DEFAULTS.items():
        study = grid("digits", budget=budget)
        assert {m: study.lines.count(m) for m in study.lines} == methods
        assert {s.z_dim for s in study.specs} == {z_dim} and budget in BUDGETS


@pytest.mark.parametrize("words, expected",
                         [(dict(dataset="digits"), grid("digits")),
                          (dict(dataset="mnist", budget="cpu", z_dims="10 20", seeds="3",
                                likelihood="gaussian", settings="lr=0.002 hidden=(9,9)"),
                           grid("mnist", z_dims=[10, 20], seeds=3, budget="cpu", likelihood="gaussian",
                                settings=dict(lr=0.002, hidden=(9, 9)))),
                          (dict(methods="vae, gpvae", z_dims=20),
                           grid(methods=["vae", "gpvae"], z_dims=[20])),
                          (dict(methods=["vae"], settings=["lr=0.1"], z_dims=[7]),
                           grid(methods=["vae"], settings=dict(lr=0.1), z_dims=[7])),
                          (dict(study="grey_mnist"), find_study("grey_mnist"))])
def test_words_make_the_study(words, expected):
    assert parse_study(**words) == expected


@pytest.mark.parametrize("words, message",
                         [(dict(study="gray_mnist"), "did you mean 'grey_mnist'"),
                          (dict(budget="cpuu"), "did you mean 'cpu'"),
                          (dict(methods="gpvea"), "did you mean 'gpvae'"),
                          (dict(seeds="10000000"), "seeds is 10000000"),
                          (dict(seeds="0"), "seeds is 0"),
                          (dict(seeds="many"), "whole number"),
                          (dict(z_dims="ten"), "whole number"),
                          (dict(settings="lr"), "is not key=value"),
                          (dict(settings="lrr=1"), "did you mean 'lr'"),
                          (dict(study="digits", seeds=2), "give one or the other"),
                          (dict(methods="vae gpvae", seeds=9999), "ask for at most"),
                          (dict(methods="vae gpvae", settings="temperature=0.1"), "setting of method vae")])
def test_what_cannot_be_is_one_line(words, message):
    with pytest.raises(InputError, match=message) as e:
        parse_study(**words)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("arguments, name",
                         [(dict(), "digits"),
                          (dict(dataset="static_mnist", budget="cpu"), "static_mnist"),
                          (dict(dataset="static_mnist"), "static_mnist_smoke"),
                          (dict(dataset="here/digits.npz"), "digits_own"),
                          (dict(z_dims=[10, 20], settings=dict(lr=0.1), likelihood="gaussian"),
                           "digits_gaussian_z10-20_lr0.1")])
def test_other_grids_have_other_names(arguments, name):
    assert grid(**arguments).name == name


def test_an_empty_study_is_refused():
    with pytest.raises(InputError, match="is empty"):
        Study("none", "None", ())


def test_refined_variants_keep_the_images_and_the_decoder():
    for likelihood, source in (("bernoulli", None), ("gaussian", "posterior")):
        spec = RunSpec("mnist", "vae", 20, 1, "cpu", likelihood)
        variants = refined_variants(spec)
        assert set(variants) == {"one step", "refitted", "refitted, one step"}
        refit = variants["refitted"]
        assert refit.parent == spec and dict(refit.settings).get("dream_source") == source
        assert replace_seed(refit, 5).parent == dataclasses.replace(spec, seed=5)
