"Studies: every line is another run, tries differ in their own settings alone, and what can be trained is told from what is history."
from dataclasses import replace

import pytest

from gpvae.checks import InputError
from gpvae.study.catalogue import PAGES, STUDIES, page
from gpvae.study.spec import BUDGETS, RunSpec, build_model, check_spec, options_of, settings_of, settings_text
from gpvae.study.store import Store
from test_store import made_up

@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_line_is_another_run(study):
    assert len(set(study.specs)) == len(study.specs) and len(study.lines) in (0, len(study.specs))
    by_line = {}
    for line, s in zip(study.lines, study.specs): by_line.setdefault((line, s.method), set()).add((s.n_train, s.settings))
    assert all(len(settings) == 1 for settings in by_line.values()) # seeds are all that differs within a line
    resolved = [(s.method, s.seed, s.n_train, settings_of(s), tuple(sorted(options_of(s).items())), s.settings if study.name == "lost" else ()) for s in study.specs]
    assert len(set(resolved)) == len(resolved) # nor does a line change nothing

@pytest.mark.parametrize("study", [s for s in STUDIES.values() if s.name != "lost"], ids=lambda s: s.name)
def test_a_study_can_be_trained(study):
    for spec in study.specs: check_spec(spec)

@pytest.mark.parametrize("spec", STUDIES["lost"].specs[:len(set(STUDIES["lost"].lines))], ids=lambda s: s.settings[0][0])
def test_what_was_lost_is_gone(spec):
    with pytest.raises(InputError):
        check_spec(spec)
        build_model(replace(spec, likelihood="bernoulli"), (1, 4, 4))

def test_the_protocol_has_smaller_steps_and_the_study_of_steps_has_not():
    assert BUDGETS["cpu"].milestones and all(settings_of(s).milestones for s in STUDIES["learning_curve"].specs)
    assert not any(settings_of(s).milestones for s in STUDIES["steps"].specs)

@pytest.mark.parametrize("name, n_train, shared", [("search", 5000, dict(milestones=(25., 30., 35.), n_test=500, epochs=40, kl_warmup=20)), ("finals", None, {})])
def test_tries_differ_in_their_own_settings_alone(name, n_train, shared):
    for line, spec in zip(STUDIES[name].lines, STUDIES[name].specs):
        settings = dict(spec.settings)
        assert shared.items() <= settings.items() and (spec.n_train, spec.seed, spec.budget) == (n_train, 0, "cpu")
        assert line == (settings_text(tuple((k, v) for k, v in spec.settings if k not in shared)) or "preset")

def test_every_family_has_as_many_tries():
    "Of its own settings and of the weight decay; one of them is the preset, and the schedule is the budget's, half as long."
    specs = STUDIES["search"].specs
    assert {sum(s.method == m for s in specs) for m in STUDIES["search"].methods} == {5}
    for m in STUDIES["search"].methods:
        tries = [s for s in specs if s.method == m]
        assert len({settings_of(s).weight_decay for s in tries}) == 3
        usual = settings_of(RunSpec(method=m, budget="cpu")), options_of(RunSpec(method=m, budget="cpu"))
        assert sum((settings_of(s).weight_decay, settings_of(s).lr, options_of(s)) == (usual[0].weight_decay, usual[0].lr, usual[1]) for s in tries) == 1
    half, whole = settings_of(specs[0]), BUDGETS["cpu"]
    assert half.epochs * 2 == whole.epochs and half.kl_warmup * 2 == whole.kl_warmup and [2 * m for m in half.milestones] == list(whole.milestones)

@pytest.mark.parametrize("budget", PAGES)
def test_a_page_has_its_methods_and_seeds(budget):
    study = page("digits", budget)
    assert {m: sum(s.method == m for s in study.specs) for m in study.methods} == PAGES[budget].methods
    assert [s.seed for s in study.specs] == sorted(s.seed for s in study.specs) # whole seeds first

@pytest.mark.parametrize("arguments, message", [(dict(budget="cpuu"), "did you mean 'cpu'"), (dict(budget="cpu", methods=["gpvea"]), "did you mean 'gpvae'"), (dict(budget="cpu", seeds=0), "seeds is 0")])
def test_a_wrong_page_is_refused(arguments, message):
    with pytest.raises(InputError, match=message): page("digits", **arguments)

def test_rows_carry_their_line_and_what_is_missing_is_named(tmp_path):
    store, study = Store(tmp_path), STUDIES["ablation"]
    store.keep([made_up("gpvae", 1, dataset="static_mnist", z_dim=20, settings="prior_scale=3.0"), made_up("vae", 2, dataset="static_mnist", z_dim=20)])
    assert sorted(study.rows(store)["line"]) == ["gpvae, prior scale 3", "vae"] and len(study.missing(store)) == len(study.specs) - 2
    assert RunSpec("static_mnist", "vae", 20, 2, "cpu") not in study.missing(store)

def test_a_family_keeps_its_own_settings_unless_others_are_asked_for():
    "Semi-amortized inference has another weight decay than the budget; a page that gives all the same names it for all."
    own, vae = (RunSpec("static_mnist", m, 20, 0, "cpu") for m in ("sa-4", "vae"))
    assert settings_of(own).weight_decay == 0.4 and settings_of(vae) == BUDGETS["cpu"]
    assert settings_of(replace(own, settings=(("weight_decay", 0.1),))).weight_decay == 0.1
    both = page("static_mnist", "cpu", ["vae", "sa-4"], 1, settings=(("weight_decay", 0.4),)).specs
    assert [s.settings for s in both] == [(("weight_decay", 0.4),)] * 2
    with pytest.raises(InputError, match="weight_decay=0.2 changes nothing for vae"): page("static_mnist", "cpu", ["vae", "sa-4"], 1, settings=(("weight_decay", 0.2),))
