"Any grid: a page of a budget is a preset of the same arguments, sizes are never mixed, a plan starts nothing, and a run that fails stands in the table."
import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from gpvae.checks import InputError
from gpvae.study import catalogue, reproduce as module
from gpvae.data import CHOICES, load
from gpvae.study.catalogue import PAGES, PRESETS, STUDIES, _varied, page
from gpvae.study.commands import gap_command, reproduce_command
from gpvae.study.defaults import _STEPS
from gpvae.study.reproduce import opening, render, shown, train_study
from gpvae.study.run import run
from gpvae.study.spec import METHODS, RunSpec
from gpvae.study.store import Store, checkout
from test_store import made_up

# --- pages and their names ----------------------------------------------------------------------------------------------------------------------

Z = {"smoke": 10, "cpu": 20, "paper": 50, "published": 40}

@pytest.mark.parametrize("more", [{}, dict(methods=["vae", "sa-8"]), dict(seeds=2), dict(methods=["gpvae"], seeds=1)])
@pytest.mark.parametrize("budget", PAGES)
def test_a_page_of_a_budget_is_what_it_was(budget, more):
    study, p = page("static_mnist", budget, **more), PAGES[budget]
    wanted = {m: more.get("seeds") or p.methods.get(m, max(p.methods.values())) for m in more.get("methods") or p.methods}
    expected = [RunSpec("static_mnist", m, Z[budget], s, budget) for s in range(max(wanted.values())) for m in wanted if s < wanted[m]]
    assert list(study.specs) == expected and (study.name, study.title, study.lines) == (budget, "Likelihoods on static MNIST", ())
    assert (study.published, study.note) == (p.published, p.note)
    assert module._page_name(study) == "static_mnist" + ("_published" if budget == "published" else "")

def test_the_template_is_told_of_a_page_what_it_was():
    names = module._Names()
    told = module._parameters(page("digits", "smoke", ["vae", "sa-4"]), ["vae", "sa-4"], [], names)
    assert told == dict(more="vae sa-4", checksum="5cd952ad2424")

@pytest.mark.parametrize("said", [dict(likelihood="bernoulli"), dict(z_dims=[20]), dict(z_dims=[20, 20]), dict(n_train=10_000), dict(settings=(("patience", 20),)),
                                  dict(settings=(("n_train", 10_000), ("max_norm", 100.)))])
def test_what_is_so_anyway_changes_nothing(said): assert page("mnist", "cpu", **said) == page("mnist", "cpu")

GRIDS = [dict(likelihood="gaussian"), dict(likelihood="gaussian-pixel"), dict(z_dims=[10]), dict(z_dims=[10, 20]), dict(z_dims=[20, 10]), dict(z_dims=[1020]), dict(n_train=100), dict(n_train=1000),
         dict(settings=(("lr", 1e-2),)), dict(settings=(("lr", 1e-3), ("epochs", 3))), dict(settings=(("n_train", None),)), dict(z_dims=[10], settings=(("lr", 1e-2),)),
         dict(z_dims=[10], methods=["vae"]), dict(z_dims=[10], methods=["vae", "gpvae"]), dict(z_dims=list(range(1, 60))), dict(z_dims=list(range(1, 61)))]

def test_every_grid_has_a_name_of_its_own():
    studies = [page("mnist", "cpu", **grid) for grid in GRIDS] + [page("mnist", budget, z_dims=[11]) for budget in PAGES]
    names = [module._page_name(s) for s in studies]
    assert len(set(names)) == len(names) and not set(names) & {"mnist", "mnist_published"} and max(map(len, names)) < 100
    for name, study in zip(names, studies):
        module._check_name(name)
        assert study.published is None and study.title.startswith("Likelihoods on MNIST: ")

def test_a_name_stays_and_can_be_read():
    name = lambda **grid: module._page_name(page("mnist", "cpu", **grid))
    assert name(likelihood="gaussian", z_dims=[10, 20, 50], n_train=5000) == "mnist_gaussian_z10-20-50_n5000_cpu"
    assert name(settings=(("lr", 1e-2), ("epochs", 3))) == name(settings=(("epochs", 3), ("lr", 1e-2))) == "mnist_cpu_e4bf2826"

def test_a_grid_has_whole_seeds_first_and_every_size():
    study = page("mnist", "cpu", ["vae", "gpvae"], 2, "gaussian", [10, 50], 500, (("lr", 1e-2),))
    assert [(s.seed, s.z_dim, s.method) for s in study.specs] == [(s, z, m) for s in (0, 1) for z in (10, 50) for m in ("vae", "gpvae")]
    assert {(s.likelihood, s.n_train, s.settings) for s in study.specs} == {("gaussian", 500, (("lr", 1e-2),))}

def test_a_setting_that_is_the_default_of_some_methods_is_refused():
    with pytest.raises(InputError, match="dropout=0.05 changes nothing for vae-dropout"): page("mnist", "cpu", ["vae", "vae-dropout"], settings=(("dropout", 0.05),))

def test_a_study_is_a_preset_too():
    study = STUDIES["sizes"]
    assert _varied(study) is study and _varied(study, settings=(("patience", 20),)).specs == study.specs # what is so anyway
    assert _varied(study, seeds=1) == study and _varied(STUDIES["steps"], seeds=3) == STUDIES["steps"]
    varied = _varied(study, ["vae", "sa-1"], 2, "gaussian", [10, 20], 500, (("lr", 0.01),))
    assert list(varied.specs) == [RunSpec("static_mnist", m, z, s, "cpu", "gaussian", 500, settings=(("lr", 0.01),)) for s in (0, 1) for m in ("vae", "sa-1") for z in (10, 20)]
    assert varied.lines == tuple(s.method for s in varied.specs)

# --- pages by name ------------------------------------------------------------------------------------------------------------------------------

GREY, FOUR = dict(likelihood="gaussian", settings=(("kl_warmup", 0), ("weight_decay", 0.4))), ["vae", "gpvae-mean", "gpvae", "full"]

@pytest.mark.parametrize("name, parts", [
    ("grey_mnist", [dict(dataset="mnist", methods=FOUR, seeds=3, **GREY), dict(dataset="mnist", methods=["sa-4", "iaf-4", "hf-4", "me-3", "rme-3"], seeds=1, **GREY)]),
    ("grey_mnist_z10-20-50", [dict(dataset="mnist", methods=FOUR, seeds=3, z_dims=(10, 20, 50), **GREY)]),
    ("grey_mnist_n50000", [dict(dataset="mnist", methods=FOUR[:3], seeds=1, n_train=50_000, **GREY)]),
    ("binary_omniglot", [dict(dataset="omniglot", methods=FOUR[:3], seeds=3), dict(dataset="omniglot", methods=["full"], seeds=2), dict(dataset="omniglot", methods=["sa-4", "iaf-4"], seeds=1)]),
    *[(f"colour_{k}", [dict(dataset=k, methods=m, seeds=s, likelihood="gaussian", settings=(*GREY["settings"], ("precision", "bfloat16"), *more)) for m, s in ((FOUR, 2), (["sa-4", "iaf-4"], 1))])
      for k, more in (("cifar10", [("n_test", 2000)]), ("celeba", [("epochs", 20), ("milestones", (12.5, 15., 17.5)), ("n_test", 1000)]))]])
def test_a_page_by_name_has_the_specifications_of_its_arguments(name, parts):
    "The very same ones, so the rows that are kept are found."
    study = page(preset=name)
    assert sorted(study.specs, key=repr) == sorted((s for part in parts for s in page(budget="cpu", **part).specs), key=repr)
    assert study.name == module._page_name(study) == name and [s.seed for s in study.specs] == sorted(s.seed for s in study.specs)
    assert study.title == f"Likelihoods on {PRESETS[name].title}"

def test_names_of_pages_are_no_names_of_image_sets_or_budgets():
    assert not set(PRESETS) & {*CHOICES, *PAGES, *STUDIES} and len({page(preset=name).title for name in PRESETS}) == len(PRESETS)
    own = page("/a folder/grey_mnist.npz", "cpu")
    assert module._page_name(own) == "grey_mnist_own"

def test_other_arguments_change_a_page_by_name_into_another_grid():
    whole = page(preset="grey_mnist")
    assert page("mnist", "cpu", preset="grey_mnist", settings=(("weight_decay", 0.4),)) == whole # what is so anyway
    for changed in (dict(seeds=1), dict(methods=["vae"]), dict(z_dims=[10]), dict(settings=(("epochs", 3),)), dict(dataset="fashion"), dict(n_train=500), dict(likelihood="gaussian-pixel")):
        study = page(preset="grey_mnist", **changed)
        assert study.name != "grey_mnist" and module._page_name(study) not in PRESETS and {*GREY["settings"]} <= {*study.specs[0].settings}
    few = page(preset="grey_mnist", methods=["sa-4", "vae", "iaf-1", "gpvae:1"])
    assert {m: sum(s.method == m for s in few.specs) for m in few.methods} == {"sa-4": 1, "vae": 3, "iaf-1": 3, "gpvae": 1}

def test_a_method_may_have_a_number_of_seeds():
    study = page("digits", "smoke", ["vae:3", "gpvae", "sa-4:1"], 2)
    assert [(s.method, s.seed) for s in study.specs] == [("vae", 0), ("gpvae", 0), ("sa-4", 0), ("vae", 1), ("gpvae", 1), ("vae", 2)]
    assert study.name == "smoke" and page("digits", "smoke", {"vae": 3, "gpvae": None, "sa-4": 1}, 2) == study
    grid = lambda *words: module._page_name(page("digits", "smoke", [*words], z_dims=[4]))
    assert grid("vae:3", "gpvae") == grid("vae", "gpvae:2") == grid("vae", "gpvae") # seeds are added to a page

def test_the_template_is_told_the_name_or_the_numbers_of_seeds():
    names = module._Names()
    names.read = lambda spec: (replace(spec, likelihood="gaussian", n_train=10_000), "5cd952ad2424aa", (1, 28, 28))
    assert module._parameters(page(preset="grey_mnist"), None, [], names) == dict(checksum="5cd952ad2424", preset="grey_mnist")
    told = module._parameters(page("mnist", "cpu", ["vae:2", "gpvae"], z_dims=[5]), ["vae:2", "gpvae"], [], names)
    assert told["methods"] == "vae:2 gpvae" and module._parameters(page("mnist", "cpu", ["vae:2"]), ["vae:2"], [], names)["more"] == "vae"

# --- wrong arguments ----------------------------------------------------------------------------------------------------------------------------

WRONG = {
    "no latents":        (["--z_dims", "10", "0"], "z_dim is 0: "),
    "word for latents":  (["--z_dims", "ten"], "invalid int value: 'ten'"),
    "likelihood":        (["--likelihood", "gausian"], "likelihood 'gausian' is unknown: did you mean 'gaussian'?"),
    "no images":         (["--n_train", "0"], "n_train is 0: pass at least 1"),
    "too many images":   (["--n_train", "5000"], "n_train is 5000: digits has 1300 such images"),
    "setting":           (["--set", "epoch=3"], "'epoch' is unknown: did you mean 'epochs'?"),
    "kind of a setting": (["--set", "lr=fast"], "setting lr='fast': expected"),
    "range":             (["--set", "weight_decay=-1."], "weight_decay is -1.0: it must be at least 0"),
    "no value":          (["--set", "epochs"], "--set 'epochs' is not key=value"),
    "twice":             (["--set", "lr=0.1", "--set", "lr=0.2"], "lr is given 2 times"),
    "of some methods":   (["--methods", "gpvae", "vae", "--set", "prior_scale=0.5"], "setting of method vae 'prior_scale' is unknown"),
    "without effect":    (["--set", "checkpoint_seconds=9."], "checkpoint_seconds changes no result: leave it out"),
    "range of a method": (["--methods", "vae-dropout", "--set", "dropout=1.0"], "dropout is 1.0: it must be at least 0 and below 1"),
    "method":            (["--methods", "gpvea", "--z_dims", "4"], "method 'gpvea' is unknown: did you mean 'gpvae'?"),
    "seeds":             (["--seeds", "-1", "--z_dims", "4"], "seeds is -1: a page needs at least one"),
    "size of a study":   (["--study", "sizes", "--z_dims", "0"], "z_dim is 0: "),
    "method of a study": (["--study", "sizes", "--methods", "gpvae"], "method of the study sizes 'gpvae' is unknown"),
    "set by a study":    (["--study", "steps", "--set", "milestones=(3.,)"], "milestones is given 2 times"),
    "seeds of a study":  (["--study", "sizes", "--seeds", "0"], "seeds is 0: a study needs at least one"),
    "preset":           (["--preset", "gray_mnist"], "preset 'gray_mnist' is unknown: did you mean 'grey_mnist'?"),
    "method of a preset": (["--preset", "grey_mnist", "--methods", "gpvea"], "method 'gpvea' is unknown: did you mean 'gpvae'?"),
    "number of seeds":  (["--methods", "vae:many"], "method 'vae:many': a number of seeds follows its name, as in vae:3"),
    "no seeds":         (["--methods", "vae:0"], "method 'vae:0': a number of seeds"),
    "negative seeds":   (["--methods", "vae:-1"], "method 'vae:-1': a number of seeds"),
    "preset and study": (["--preset", "grey_mnist", "--study", "sizes"], "study sizes and preset grey_mnist: give one of both"),
    "lines of a study":  (["--study", "learning_curve", "--n_train", "500"], "n_train=500 makes lines of the study learning_curve equal: leave it out"),
}

@pytest.fixture
def idle(monkeypatch):
    "A run that starts is a failure of the test."
    monkeypatch.setattr(module, "_start", lambda spec, *args: pytest.fail(f"a run has started: {spec}"))

@pytest.mark.parametrize("plan", [[], ["--plan"]], ids=["start", "plan"])
@pytest.mark.parametrize("args, message", WRONG.values(), ids=WRONG)
def test_a_wrong_grid_is_refused_in_one_line(capsys, tmp_path, runs, idle, args, message, plan):
    try: status = reproduce_command([*args, *plan, "--out", str(tmp_path / "out"), "--device", "cpu"])
    except SystemExit as e: status = e.code
    out, err = capsys.readouterr()
    assert status == 2 and out == "" and message in err and err.startswith("gpvae_reproduce: ") and err.count("\n") == 1
    assert not list(runs.rglob("*")) and not list((tmp_path / "out").rglob("*.csv"))

POISON = "__import__('os').system('touch poisoned')"

@pytest.mark.parametrize("name, value, message", [
    ("z_dims", POISON, 'write whole numbers, as in 20 or "[10, 20]"'), ("n_train", POISON, "write whole numbers"), ("seeds", POISON, "write whole numbers"), ("z_dims", True, "write whole numbers"),
    ("n_train", "1 2", "write one whole number"), ("z_dims", 1.5, "write whole numbers"), ("likelihood", POISON, "choose one of bernoulli, gaussian"), ("methods", POISON, "choose one of vae, gpvae"),
    ("settings", POISON, "is not key=value"), ("settings", f"lr={POISON}", "expected something like"), ("failed", POISON, "it is a list of"), ("budget", POISON, "choose one of smoke"),
    ("preset", POISON, "choose one of grey_mnist"), ("methods", "vae:9**9", "a number of seeds follows its name"), ("dataset", POISON, "has no run of"), ("n_train", 0, "pass at least 1"), ("z_dims", [0], "z_dim is 0")])
def test_a_poisoned_parameter_runs_no_code(tmp_path, monkeypatch, name, value, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as e: shown(**{"dataset": "digits", "budget": "smoke", "store": Store(tmp_path), name: value})
    assert message in str(e.value) and "\n" not in str(e.value) and not (tmp_path / "poisoned").exists()

@pytest.mark.parametrize("value", ["10 20", "[10, 20]", "(10,20)", [10, 20], (10, 20), "10, 20", ["10", "20"]])
def test_numbers_come_as_text_or_as_a_list(value): assert module._numbers("z_dims", value) == [10, 20]

@pytest.mark.parametrize("value", ["hidden=(8, 8) lr=0.01 network=mlp", ["hidden=(8, 8)", "lr=0.01", "network=mlp"]])
def test_settings_come_as_text_or_as_a_list(value): assert module._pairs(value) == (("hidden", (8, 8)), ("lr", 0.01), ("network", "mlp"))

# --- a grid from end to end ---------------------------------------------------------------------------------------------------------------------

TINY = dict(epochs=2, hidden=(8,), n_valid=20, n_test=60, k=2)
GRID = dict(z_dims=[2, 3], n_train=100, settings=tuple(TINY.items()))
WORDS = ["--methods", "vae", "gpvae", "--seeds", "1", "--z_dims", "2", "3", "--n_train", "100", *(w for k, v in TINY.items() for w in ("--set", f"{k}={v}"))]

def trained_here(specs, runs, jobs, device, bar):
    "Runs of this process, which are faster than processes of their own."
    for spec in specs: run(spec, runs, device, bar=False)
    return []

class Made:
    "The grid, made by the command: two sizes of two methods."
    def __init__(self, folder): self.folder, self.out, self.runs = folder, folder / "out", folder / "runs"

    def call(self, *more): # exit status, what it said
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            status = reproduce_command([*WORDS, "--out", str(self.out), "--runs", str(self.runs), "--device", "cpu", *more])
        return status, (out.getvalue(), err.getvalue())

    @property
    def page(self): return next(self.out.glob("*.ipynb"))

def outputs(nb): return [o for c in nb.cells for o in c.get("outputs", [])]

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    grid, time_run = Made(tmp_path_factory.mktemp("grid")), module.time_run
    with pytest.MonkeyPatch.context() as m:
        m.setattr(module, "_train", trained_here)
        m.setattr(module, "time_run", lambda folder, device: time_run(folder, device, 3))
        grid.before, grid.nothing = grid.call("--plan"), [*grid.folder.iterdir()]
        grid.first = grid.call()
        grid.rendered = nbformat.read(grid.page, as_version=4)
        m.setattr(module, "_train", lambda specs, *args: pytest.fail(f"trained again: {specs}") if specs else [])
        grid.second, grid.after = grid.call("--quiet"), grid.call("--plan")
        grid.elsewhere = grid.call("--plan", "--runs", str(grid.folder / "other"))
    return grid

def test_a_plan_says_what_is_missing_and_starts_nothing(made):
    status, (out, err) = made.before
    assert status == 0 and not made.nothing and err == "" and out.count(" missing ") == 4 # no folder was made
    assert "4 runs: 0 finished, 0 in the store, 4 missing" in out and "4 to train, 2 at a time: unknown" in out and "memory unknown" in out

def test_a_plan_says_what_is_finished_or_in_the_store(made):
    for (status, (out, _)), words in ((made.after, "4 finished, 0 in the store, 0 missing"), (made.elsewhere, "0 finished, 4 in the store, 0 missing")):
        assert status == 0 and words in out and "nothing is to be trained" in out and "to train," not in out

def test_the_plan_is_printed_before_a_start_and_a_second_call_trains_nothing(made):
    (status, (first, _)), (again, (second, _)) = made.first, made.second
    assert status == again == 0 and "4 runs: 0 finished, 0 in the store, 4 missing\n4 to train" in first and "missing" not in second
    assert first.partition("\n\n")[2] == second and "IWAE-2" in second # the same table, the same page
    assert outputs(nbformat.read(made.page, as_version=4)) == outputs(made.rendered) != [] and len(Store(made.out).runs()) == 4

def test_a_grid_is_a_page_with_a_block_for_each_size(made):
    nb, name = nbformat.read(made.page, as_version=4), module._page_name(page("digits", "smoke", ["vae", "gpvae"], 1, **GRID))
    text, s = made.page.read_text(), shown("digits", "smoke", store=Store(made.out), methods="vae gpvae", z_dims="2 3", n_train=100, settings=[f"{k}={v}" for k, v in TINY.items()])
    assert made.page.stem == name and str(made.out.parent) not in text and "Likelihoods with 2 and 3 latent dimensions, 100 training images, other settings on" in text
    assert list(s.table.index) == [(2, "vae"), (2, "gpvae"), (3, "vae"), (3, "gpvae")] and s.table.index.names == ["z", "method"]
    for cell in s.table.astype(str).to_numpy().ravel(): assert cell in text
    assert not [o for o in outputs(nb) if o.output_type in ("error", "stream")]

def test_papermill_takes_text_from_any_folder(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPVAE_RESULTS", str(made.out))
    settings = " ".join(f"{k}={v}" for k, v in TINY.items())
    values = dict(dataset="digits", budget="smoke", likelihood="bernoulli", z_dims="[2, 3]", n_train="100", methods="vae gpvae", seeds=1, settings=settings)
    nb = papermill.execute_notebook(str(checkout() / "nbs" / "reproduce.ipynb"), None, values, kernel_name="python3", progress_bar=False, log_output=False)
    table = lambda nb: [o.data["text/plain"] for o in outputs(nb) if "IWAE − vae" in o.get("data", {}).get("text/plain", "")]
    assert table(nb) == table(nbformat.read(made.page, as_version=4)) != []

@pytest.fixture
def own(made, tmp_path):
    "A copy of the grid, which a test may add to."
    shutil.copytree(made.folder, tmp_path / "copy")
    return Made(tmp_path / "copy")

def test_a_page_by_name_is_made_and_rendered_by_its_name(own, monkeypatch, capsys):
    "By the command, and by papermill from the rows; the second seed of a method that is to have one is no row of the page."
    named = catalogue._Preset("few digits", dict(dataset="digits", budget="smoke", methods={"vae": 2, "gpvae": 1}, **GRID))
    monkeypatch.setitem(PRESETS, "few_digits", named)
    monkeypatch.setattr(module, "_train", trained_here)
    rendered = []
    monkeypatch.setattr(module, "render", lambda *args, **more: rendered.append(more) or own.out)
    where = ["--out", str(own.out), "--runs", str(own.runs), "--device", "cpu", "--quiet"]
    assert reproduce_command([*WORDS[:3], "--seeds", "2", *WORDS[5:], *where]) == 0 # two seeds of both
    assert reproduce_command(["--preset", "few_digits", "--plan", *where]) == 0
    out = capsys.readouterr().out
    assert "6 runs: 6 finished, 0 in the store, 0 missing" in out and "nothing is to be trained" in out
    module.reproduce(preset="few_digits", runs=own.runs, out=own.out, device="cpu", bar=False)
    assert rendered[-1]["name"] == rendered[-1]["preset"] == "few_digits" and rendered[-1]["title"] == "Likelihoods on few digits"
    s = shown(preset="few_digits", store=Store(own.out))
    assert s.rows.groupby("method").size().to_dict() == {"vae": 4, "gpvae": 2} and s.table["seeds"].tolist() == [2, 1, 2, 1]
    assert shown("digits", "smoke", store=Store(own.out), methods="vae gpvae", **{k: v for k, v in GRID.items() if k != "settings"}, settings=list(map("{0[0]}={0[1]}".format, GRID["settings"]))).table["seeds"].tolist() == [2] * 4
    with pytest.raises(InputError, match="no run of digits at budget smoke like this: gpvae_reproduce --preset few_digits makes them"): shown(preset="few_digits", store=Store(own.folder / "empty"))

def test_gaps_of_a_grid_are_kept_and_stand_on_its_page(own, capsys):
    where = ["--out", str(own.out), "--runs", str(own.runs), "--device", "cpu", "--quiet", "--test", "2", "--train", "2", "--valid", "2", "--temperatures", "2", "--chains", "2"]
    words = [w for w in WORDS if w not in ("--seeds", "1")] # of one seed
    assert gap_command([*words, *where]) == 0
    out, _ = capsys.readouterr()
    assert "z = 2\n" in out and "z = 3\n" in out and out.count("log p(x) − vae") == 2 and "which gpvae_reproduce reads" in out
    s = shown("digits", "smoke", store=Store(own.out), methods="vae gpvae", z_dims="2 3", n_train=100, settings=[f"{k}={v}" for k, v in TINY.items()])
    assert len(Store(own.out).gaps()) == 4 and "log p(x), 2 images" in s.marks and "IWAE-2" in s.marks
    assert s.annealed.startswith("**How true log p(x) is.** Annealing took 2 temperatures and 2 chains. On 32 images") and s.annealed.count("\n| 2 | ") == s.annealed.count("\n| 3 | ") == 2
    assert gap_command(["--preset", "grey_mnist", "--seed", "7", *where]) == 2 and "seed is 7: grey_mnist has no run of this seed" in capsys.readouterr().err

def test_the_template_refuses_a_poisoned_parameter(made):
    with pytest.raises(InputError, match="write whole numbers"): render("digits", "smoke", made.runs, made.out, name="poisoned", z_dims=POISON)
    assert not (made.out / "poisoned.ipynb").exists()

# --- sizes are never mixed ----------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def sizes(tmp_path):
    "Two methods at two sizes, two seeds each: the second method is better at one size and worse at the other."
    level = lambda m, z, s: -90. - z - s / 64 + {("gpvae", 2): 1., ("gpvae", 3): -2.}.get((m, z), 0.)
    store, more = Store(tmp_path / "sizes"), dict(dataset="digits", budget="smoke", n_train=1300, binarisation="fixed", active_units=2, ess=9., train_seconds=1., torch="2", device="cpu")
    store.keep([made_up(m, s, level(m, z, s), z_dim=z, spec=f"{m}{z}{s}", **more) for m in ("vae", "gpvae") for z in (2, 3) for s in (0, 1)])
    return store

def test_differences_are_within_one_size(sizes):
    s = shown("digits", "smoke", store=sizes, methods="vae gpvae", z_dims=[2, 3])
    assert s.table["IWAE − vae [images]"].str.partition(" ")[0].tolist() == ["", "+1.00", "", "-2.00"] and s.table["seeds"].tolist() == [2] * 4
    assert s.table["IWAE-100"].str.partition(" ")[0].tolist() == ["-92.01", "-91.01", "-93.01", "-95.01"]
    said = opening(s)
    assert "With 2 latent dimensions: **Yes, it does**: the difference in IWAE-100 is +1.00" in said and "With 3 latent dimensions: **No, it is lower**: the difference in IWAE-100 is -2.00" in said
    assert "2 and 3 latent dimensions, 8 runs" in s.setting

def test_a_page_says_what_the_budget_of_the_paper_would_take(tmp_path):
    store = Store(tmp_path / "kept")
    usual = dict(dataset="digits", n_train=1300, binarisation="fixed", active_units=2, ess=9., torch="2", device="cpu of a test", epochs=80, checksum=load("digits").checksum[:12])
    store.keep([made_up(m, 0, -90., z_dim=20, budget="cpu", spec=m, train_seconds=seconds, **usual) for m, seconds in (("vae", 80.), ("gpvae-mean", 160.), ("gpvae", 160.))])
    text = shown("digits", "cpu", store=store).setting
    assert ("**Budget `paper`: not run.** Up to 2,000 epochs of 1,300 images: `gpvae_reproduce --dataset digits --budget paper` trains 9 models, 2 at a time. ") in text
    assert "measured on cpu of a test the plan guesses 4 hours at most" in text # 25 times as many epochs: 3 (2000 + 4000 + 4000) s / 2
    store.keep([made_up("vae", s, -90., z_dim=50, budget="paper", spec=f"paper{s}", train_seconds=1., **usual) for s in range(3)])
    assert "**Budget `paper`: 6 of its 9 runs are missing.**" in shown("digits", "cpu", store=store).setting
    assert "**" not in shown("digits", "paper", store=store).setting

def test_a_preset_saves_nothing_at_another_budget():
    of = lambda **asked: dict(page(preset="colour_celeba", **asked).specs[0].settings)
    assert of()["epochs"] == of(budget="cpu")["epochs"] == 20 and of(budget="paper") == {k: v for k, v in of().items() if k not in ("epochs", "milestones", "n_test")}
    assert of(budget="paper", settings=(("epochs", 3),))["epochs"] == 3

def test_one_seed_does_not_answer(sizes):
    said = opening(shown("digits", "smoke", store=sizes, methods="vae gpvae", z_dims=[2], seeds=1))
    assert "**One seed cannot tell**: the difference in IWAE-100 is +1.00" in said and "images of one seed" in said

def test_one_size_is_a_table_without_blocks(sizes):
    s = shown("digits", "smoke", store=sizes, methods=["vae"], z_dims="3", seeds="1")
    assert list(s.table.index) == ["vae"] and s.table.index.name == "method" and s.table["seeds"].tolist() == [1]

@pytest.mark.parametrize("column, value, words", [("n_train", 500, "n_train"), ("checksum", "def", "checksum"), ("settings", "lr=0.1", None), ("likelihood", "gaussian", None)])
def test_unlike_rows_are_refused_or_left_out(sizes, column, value, words):
    rows = sizes.runs()
    changed = rows[rows["z_dim"] == 3].iloc[:1].to_dict("records")[0] | {column: value, "spec": "other"}
    sizes._keep_rows("runs", [changed])
    if column == "checksum":
        with pytest.raises(InputError, match="checksum .* cannot share a table"): shown("digits", "smoke", store=sizes, methods="vae gpvae", z_dims=[2, 3])
    else: assert "other" not in shown("digits", "smoke", store=sizes, methods="vae gpvae", z_dims=[2, 3]).rows["spec"].tolist()

def test_a_row_of_another_number_of_images_is_not_taken(sizes):
    with pytest.raises(InputError, match="gpvae_reproduce --dataset digits --budget smoke --methods vae --z_dims 2 3 --n_train 100 --set 'lr=0.1' makes them"):
        shown("digits", "smoke", store=sizes, methods="vae", z_dims=[2, 3], n_train=100, settings="lr=0.1")

# --- what a plan expects ------------------------------------------------------------------------------------------------------------------------

def timed(*rows):
    "What is expected from rows that differ so from one of the VAE."
    usual = dict(dataset="digits", budget="cpu", method="vae", z_dim=20, settings="", n_train=1000, epochs=10, train_seconds=100.)
    return module._Expected(pd.DataFrame([usual | row for row in rows]))

SPEC = RunSpec("digits", "sa-4", 20, 0, "cpu", n_train=2000, settings=(("epochs", 40),))

@pytest.mark.parametrize("rows, seconds, guess", [
    ([dict(method="sa-4")], 800., False),                                                  # twice the images, four times the epochs
    ([dict(method="sa-4"), dict(method="sa-4", train_seconds=300.)], 1600., False),        # the median of two
    ([dict(method="sa-4"), dict(method="sa-4", settings="epochs=40", train_seconds=200.)], 1600., False), # the same settings are nearer
    ([dict(method="sa-4", dataset="mnist"), dict()], 800., True),                          # of another set
    ([dict()], 800. * _STEPS["sa-4"], True),                                               # from the VAE
    ([dict(method="sa-4", budget="smoke"), dict()], 800. * _STEPS["sa-4"], True),          # the network may be another at another budget,
    ([dict(method="sa-4", budget="smoke"), dict(budget="smoke")], 800., True),             # so it comes last
    ([dict(method="gpvae")], None, True), ([], None, True)])                               # nothing is known
def test_seconds_are_those_of_the_nearest_rows(rows, seconds, guess):
    found, guessed = timed(*rows)(SPEC)
    assert (np.isnan(found) if seconds is None else found == pytest.approx(seconds)) and guessed == guess

def cells(*seconds, guess=False): return [module._Cell(replace(SPEC, seed=i), "sa-4", "missing", True, s, guess) for i, s in enumerate(seconds)]

@pytest.mark.parametrize("seconds, jobs, guess, words", [
    ((3600., 3600., 3600., 3600.), 2, False, "2 hours"), ((7200., 60.), 2, False, "2 hours"), ((30., 30.), 1, True, "guess: 60 seconds"),
    ((30., float("nan")), 1, False, "30 seconds, 1 of unknown time"), ((float("nan"),), 1, True, "unknown")])
def test_a_plan_says_how_long(seconds, jobs, guess, words):
    assert module._took(cells(*seconds, guess=guess), jobs) == words
    assert f"{len(seconds)} to train, {min(jobs, len(seconds))} at a time: {words}, 12 MB of disk, " in module._Plan(cells(*seconds, guess=guess), jobs, 12., 100.).summary

def test_memory_and_disk_are_those_of_the_runs(runs, tmp_path):
    spec = RunSpec("digits", "vae", 2, 0, "smoke", n_train=100, settings=tuple((TINY | dict(hidden=(300,))).items()))
    made = run(spec, runs, "cpu", bar=False)
    size = (made.folder / "checkpoint.safetensors").stat().st_size / 1e6
    assert module._checkpoints_mb([spec, replace(spec, seed=1)], module._Names()) == pytest.approx(2 * size, rel=0.05)
    Store(tmp_path / "out").keep([made])
    plan = module._plan([replace(spec, seed=s) for s in (1, 2)], Store(tmp_path / "out"), runs, jobs=2)
    assert plan.peak_mb == pytest.approx(made.metrics["peak_mb"], rel=1e-3) and f"{2 * made.metrics['peak_mb']:,.0f} MB of memory" in plan.summary

def test_a_large_plan_reads_every_image_set_once(tmp_path, runs, monkeypatch):
    "5 sets, 3 sizes, 24 methods and 5 seeds, of which the store has one seed."
    monkeypatch.setenv("GPVAE_DATA", str(tmp_path / "data"))
    calls, load, build = [], module.load_images, module.build_model
    monkeypatch.setattr(module, "load_images", lambda spec: calls.append("load") or load(spec))
    monkeypatch.setattr(module, "build_model", lambda *args: calls.append("build") or build(*args))
    methods, store, specs, kept = list(METHODS)[:24], Store(tmp_path / "out"), [], []
    for i in range(5):
        path, pixels = tmp_path / f"set{i}.npz", np.random.RandomState(i).randint(0, 256, (60, 4, 4, 1)).astype(np.uint8)
        np.savez(path, x_train=pixels[:50], x_test=pixels[50:])
        specs += page(str(path), "smoke", methods, 5, z_dims=[2, 3, 4]).specs
    names = module._Names()
    for spec in specs:
        if spec.seed: continue
        full, checksum, _ = names.read(spec)
        kept.append(made_up(full.method, 0, z_dim=full.z_dim, dataset=full.image_set, budget="smoke", n_train=full.n_train, likelihood=full.likelihood, binarisation=full.binarisation,
                            checksum=checksum[:12], train_seconds=5., epochs=100, spec=names(spec)))
    store.keep(kept, images=False)
    calls.clear()
    plan = module._plan(specs, store, runs)
    assert len(specs) == 1800 and calls.count("load") == 5 and calls.count("build") <= 15
    assert "1800 runs: 0 finished, 360 in the store, 1440 missing\n1440 to train, 2 at a time: 60 minutes" in str(plan) and "guess" not in plan.summary

def test_a_study_has_a_plan_of_its_lines(capsys, runs, tmp_path, idle):
    store, digits = Store(tmp_path / "out"), RunSpec("digits", "vae", 4, 0, "smoke")
    study = replace(STUDIES["sizes"], specs=(digits, replace(digits, settings=(("lr", 0.01),))), lines=("plain", "fast"))
    with pytest.MonkeyPatch.context() as m:
        m.setitem(STUDIES, "sizes", study)
        store.keep([made_up("vae", 0, dataset="digits", z_dim=4, budget="smoke", n_train=1300, binarisation="fixed")])
        assert reproduce_command(["--study", "sizes", "--plan", "--out", str(store.folder), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "2 runs: 0 finished, 1 in the store, 1 missing" in out and [line.split()[-2:] for line in out.splitlines() if "fast" in line] == [["missing", "unknown"]]

def test_a_page_of_a_budget_is_made_again_where_its_runs_are_not_here(capsys, runs, idle):
    assert reproduce_command(["--plan", "--device", "cpu", "--out", str(checkout() / "nbs" / "results")]) == 0
    out = capsys.readouterr().out
    assert "3 runs: 0 finished, 3 in the store, 0 missing\n3 in the store, made again here: their folders are elsewhere\n3 to train" in out

# --- failures -----------------------------------------------------------------------------------------------------------------------------------

def test_a_cell_that_fails_stands_in_the_table_and_stops_no_other(made, tmp_path, monkeypatch, capsys):
    out, started = shutil.copytree(made.out, tmp_path / "out"), []
    def train(specs, *args):
        started.extend(s.method for s in specs)
        return [module._Failure(s, 2, "gpvae_run: /some/where/x.npz: step 3: the loss is inf") for s in specs]
    monkeypatch.setattr(module, "_train", train)
    status = reproduce_command([WORDS[0], "iaf-1", *WORDS[1:], "--out", str(out), "--runs", str(made.runs), "--device", "cpu", "--quiet"])
    said = capsys.readouterr()
    assert status == 2 and said.err.count("\n") == 1 and "z 2, iaf-1 seed 0 ended with status 2: gpvae_run: /some/where/x.npz: step 3" in said.err and started == ["iaf-1"] * 2
    new, = {p.name for p in out.glob("*.ipynb")} - {made.page.name}
    text, words = (out / new).read_text(), "failed: seed 0, x.npz: step 3: the loss is inf"
    assert said.out.count(words) == 2 and words in text and "/some/where" not in text and len(Store(out).runs()) == 4
    values = shown("digits", "smoke", store=Store(out), methods="iaf-1 vae gpvae", z_dims=[2, 3], n_train=100, settings=[f"{k}={v}" for k, v in TINY.items()],
                   failed=[["iaf-1", 2, 0, "it broke"], ["vae", 3, 4, "it broke too"]]).table
    assert list(values.index) == [(2, "iaf-1"), (2, "vae"), (2, "gpvae"), (3, "vae"), (3, "gpvae")]
    assert values["error"].tolist() == ["failed: seed 0, it broke", "", "", "failed: seed 4, it broke too", ""] and values.loc[(3, "vae"), "seeds"] == 1

def test_a_page_where_all_fails_is_the_failures_alone(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "_train", lambda specs, *args: [module._Failure(s, 2, "it broke") for s in specs])
    assert reproduce_command([*WORDS, "--out", str(tmp_path / "out"), "--device", "cpu", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert err.count("it broke") == 4 and err.count("\n") == 1 and not list((tmp_path / "out").glob("*.ipynb"))

def test_a_study_keeps_what_did_not_fail(runs, tmp_path, monkeypatch, capsys):
    digits = RunSpec("digits", "vae", 2, 0, "smoke", n_train=100, settings=tuple(TINY.items()))
    study = replace(STUDIES["sizes"], specs=(digits, replace(digits, seed=1), replace(digits, method="gpvae")), lines=("plain", "plain", "other"))
    def train(specs, runs, *args):
        for s in specs[:1]: run(s, runs, "cpu", bar=False)
        return [module._Failure(s, 2, "it broke") for s in specs[1:]]
    monkeypatch.setattr(module, "_train", train)
    monkeypatch.setitem(STUDIES, "sizes", study)
    with pytest.raises(InputError, match="vae seed 1 ended with status 2: it broke; gpvae seed 0 ended"): train_study("sizes", out=tmp_path / "out", device="cpu", bar=False)
    out = capsys.readouterr().out
    assert "failed: seed 1, it broke" in out and "failed: seed 0, it broke" in out and len(Store(tmp_path / "out").runs()) == 1

def test_the_error_of_a_run_under_a_bar_is_known(runs, capfd):
    "Its standard error goes to the terminal, so that its bar is seen."
    spec = RunSpec("digits", "vae", 2, 0, "smoke", n_train=100, settings=(*TINY.items(), ("lr", 1e30)))
    failure, = module._train([spec], runs, 1, "cpu", bar=True)
    assert failure.spec == spec and failure.status == 2 and failure.line.startswith("step ") and "\n" not in failure.line
    assert "gpvae_run: step " in capfd.readouterr().err

@pytest.mark.parametrize("said, line", [("", "ended with status 1"), ("Traceback\n  File x\nValueError: no", "ValueError: no"), ("gpvae_run: /a/b/c.npz is damaged", "c.npz is damaged"), ("x" * 200, "x" * 149 + "…")])
def test_an_error_is_one_line_without_folders(said, line): assert module._Failure(SPEC, 1, said).line == line

def test_several_runs_have_a_bar_of_their_own(runs, tmp_path, monkeypatch, capfd):
    "The first line is that of all runs; theirs are below."
    lines = []
    class Child:
        def __init__(self, spec, line):
            self.line, self.process = line, self
            lines.append(line)
        def poll(self): return 0
        def failure(self): return None
    monkeypatch.setattr(module, "_start", lambda spec, runs, device, bar, line: Child(spec, line))
    assert module._train([replace(SPEC, seed=s) for s in range(3)], runs, 2, "cpu", True) == [] and set(lines) == {1, 2}
    assert "all runs" in (said := capfd.readouterr().err) and "3/3" in said
    lines.clear()
    module._train([SPEC], runs, 2, "cpu", True), module._train([SPEC, SPEC], runs, 1, "cpu", False)
    assert lines == [0, 0, 0] and "all runs" not in capfd.readouterr().err

def test_the_table_of_a_study_mixes_no_sizes_and_no_numbers_of_images(tmp_path):
    runs = [made_up("vae", 0, -90. - z - n / 1000, z_dim=z, n_train=n, spec=f"{z}{n}", dataset="digits", active_units=2, valid_elbo=-90., best_epoch=3) for z in (2, 3) for n in (1000, 2000)]
    rows = pd.DataFrame([r.metrics for r in runs]).assign(line="plain")
    table = module._study_table(rows)
    assert table.index.names == ["n_train", "z_dim", "line"] and table["test IWAE"].tolist() == ["-93.00", "-94.00", "-94.00", "-95.00"]
    assert module._study_table(rows[:1]).index.tolist() == ["plain"]
