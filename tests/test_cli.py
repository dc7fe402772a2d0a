"The command gpvae: a mistake is one line and status 2, results go to a user's folder, help costs nothing."

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest

from gpvae.data import load
from gpvae.files import read_json
from gpvae.study import cli, launch
from gpvae.study.cli import main, make_parser
from gpvae.study.config import RunSpec, resolve
from gpvae.study.run import open_run, run
from gpvae.study.store import Store
from gpvae.study.studies import find_study

ROOT = Path(__file__).resolve().parents[1]
TINY = dict(epochs=2, hidden=(8,), n_train=100, n_valid=20, n_test=60, k=2)
SET = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
GPVAE = [sys.executable, "-P", "-m", "gpvae.study.cli"]


@pytest.fixture
def idle(monkeypatch):
    "Training that starts is a failure of the test."
    monkeypatch.setattr("gpvae.study.run.train_run", lambda *args: pytest.fail("training has started"))
    monkeypatch.setattr(launch.Launcher, "start", lambda *args: pytest.fail("a run has started"))


def refused(capsys, *words):
    "The one line that a refused command prints."
    try:
        status = main(words)
    except SystemExit as e:
        status = e.code
    out, err = capsys.readouterr()
    assert status == 2 and out == "" and err.startswith("gpvae") and err.count("\n") == 1, out + err
    return err


# --- what is wrong is one line --------------------------------------------------------------------

WRONG_RUN = {"data set": (["--dataset", "digitz"], "data set 'digitz' is unknown: did you mean 'digits'?"),
             "file": (["--dataset", "/nowhere/my.npz"], "'/nowhere/my.npz': there is no such file"),
             "method": (["--method", "gpva"], "method 'gpva' is unknown: did you mean 'gpvae'?"),
             "budget": (["--budget", "smoky"], "budget 'smoky' is unknown: did you mean 'smoke'?"),
             "likelihood": (["--likelihood", "bernouli"], "did you mean 'bernoulli'?"),
             "binarisation": (["--binarisation", "statik"], "did you mean 'static'?"),
             "grey bernoulli": (["--binarisation", "none"], "bernoulli likelihood needs binary pixels"),
             "no latents": (["--z_dim", "0"], "z_dim is 0"),
             "too many latents": (["--z_dim", "100000000"], "z_dim is 100000000: choose at most 10000"),
             "word for latents": (["--z-dim", "x"], "argument --z-dim: invalid int value: 'x'"),
             "seed": (["--seed", "-1"], "seed is -1"),
             "endless seed": (["--seed", str(2**63)], f"seed is {2**63}"),
             "setting": (["--set", "epoch=3"], "'epoch' is unknown: did you mean 'epochs'?"),
             "no value": (["--set", "epochs"], "--set 'epochs' is not key=value"),
             "twice": (["--set", "lr=0.1", "--set", "lr=0.2"], "lr is given 2 times"),
             "too many images": (["--set", "n_train=5000"], "n_train is 5000: digits has 1300 such images"),
             "kind": (["--set", "epochs=many"], "setting epochs='many': expected something like 100"),
             "other method": (["--method", "vae", "--set", "prior_scale=1."],
                              "setting of method vae 'prior_scale' is unknown"),
             "device": (["--device", "tpu"], "device 'tpu' is unknown"),
             "specification": (["--spec", '{"datasets": "digits"}'],
                               "field of a specification 'datasets' is unknown"),
             "no JSON": (["--spec", "{"], "argument --spec: invalid json_object value: '{'"),
             "folder": (["--runs", "/proc/nowhere"], "cannot be written"),
             "option": (["--nonsense"], "unrecognized arguments: --nonsense"),
             "abbreviation": (["--data", "digits"], "unrecognized arguments: --data")}


@pytest.mark.parametrize("words, message", WRONG_RUN.values(), ids=WRONG_RUN)
def test_a_wrong_run_is_one_line(capsys, runs, idle, words, message):
    assert message in refused(capsys, "run", "--quiet", *words)
    assert not list(runs.rglob("checkpoint*"))


WRONG_STUDY = {"study": (["--study", "sizez"], "study 'sizez' is unknown: did you mean 'sizes'?"),
               "no file": (["--study", "/nowhere/study.json"], "/nowhere/study.json is missing"),
               "study and set": (["--study", "sizes", "--dataset", "mnist"],
                                 "study sizes and dataset: give one or the other"),
               "method": (["--methods", "vae", "gpvea"], "method 'gpvea' is unknown: did you mean 'gpvae'?"),
               "budget": (["--budget", "cpuu"], "did you mean 'cpu'?"),
               "latents": (["--z_dims", "10", "0"], "z_dim is 0"),
               "word for latents": (["--z-dims", "ten"], "z_dims is 'ten': it must be a whole number"),
               "no seeds": (["--seeds", "0"], "seeds is 0: choose from 1 to 10000"),
               "ten million seeds": (["--seeds", "10000000"], "seeds is 10000000: choose from 1 to 10000"),
               "word for seeds": (["--seeds", "x"], "seeds is 'x': it must be a whole number"),
               "setting": (["--set", "epoch=3"], "did you mean 'epochs'?"),
               "option": (["--nonsense", "3"], "unrecognized arguments: --nonsense 3")}
WRONG_REPRODUCE = {"jobs": (["--jobs", "0"], "jobs is 0: at least one run must be allowed"),
                   "device": (["--device", "cudo"], "device 'cudo' is unknown: did you mean 'cuda'?"),
                   "folder": (["--out", "/proc/nowhere"], "the folder /proc/nowhere cannot be written")}
WRONG_GAP = {"one image": (["--test", "1"], "test is 1"),
             "seed": (["--seed", "7"], "seed is 7: digits has no run"),
             "annealing": (["--temperatures", "0"], "temperatures is 0")}
CASES = ([("plan", *case) for case in WRONG_STUDY.values()]
         + [("reproduce", *case) for case in (WRONG_STUDY | WRONG_REPRODUCE).values()]
         + [("gap", *case) for case in (WRONG_REPRODUCE | WRONG_GAP).values()])


@pytest.mark.parametrize("command, words, message", CASES)
def test_a_wrong_study_is_one_line_before_anything_starts(
    capsys, tmp_path, runs, idle, command, words, message
):
    out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
    assert message in refused(capsys, command, *out, "--quiet", *words)
    assert not list(runs.rglob("*")) and not list(tmp_path.rglob("*.csv"))


def test_what_rendering_needs_is_looked_for_before_training(capsys, tmp_path, runs, idle, monkeypatch):
    from gpvae.study import report

    monkeypatch.setattr(report, "TEMPLATES", tmp_path)
    assert "reproduce.ipynb is missing" in refused(capsys, "reproduce", "--out", str(tmp_path / "out"))


# --- commands that work ---------------------------------------------------------------------------


def test_hyphens_and_underscores_are_one():
    words = ["plan", "--z_dims", "10", "20", "--set", "natural_step=0.5"]
    for given in (words, ["plan", "--z-dims", *words[2:]]):
        args = make_parser().parse_args([cli.with_hyphens(word) for word in given])
        assert args.z_dims == ["10", "20"] and args.settings == ["natural_step=0.5"]
    assert cli.with_hyphens("--z_dim=a_b") == "--z-dim=a_b" and cli.with_hyphens("a_b") == "a_b"


def test_a_command_has_a_name_of_its_own(monkeypatch, capsys, runs, idle):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/gpvae_run", "--z_dim", "0"])
    assert main() == 2 and capsys.readouterr().err.startswith("gpvae run: z_dim is 0")


def test_one_run_and_its_refit(capsys, runs):
    assert main(["run", *SET, "--method", "vae", "--z_dim", "2", "--device", "cpu", "--quiet"]) == 0
    row = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " " in line.strip())
    folder = Path(row["folder"])
    assert folder.name == row["run"] == resolve(RunSpec("digits", "vae", 2, settings=TINY)).id
    spec = json.dumps(RunSpec("digits", "vae", 2, settings=TINY).to_json())
    assert (main(["run", "--spec", spec, "--quiet"]) == 0
            and f"folder          {folder}" in capsys.readouterr().out)
    assert main(["refit", row["run"], "--set", "epochs=1", "--device", "cpu", "--quiet"]) == 0
    refit = capsys.readouterr().out.split()
    assert open_run(Path(refit[-1])).row["parent"].startswith("digits vae z=2")
    assert f"{float(row['elbo']):.2f}" in refit
    assert main(["refit", "nothing"]) == 2 and "nothing is no finished run" in capsys.readouterr().err


def test_plan_starts_nothing(capsys, tmp_path, runs, idle):
    words = ["--methods", "vae", "sa-4", "--z-dims", "2", "3", "--out", str(tmp_path / "out")]
    assert main(["plan", *words, "--write", str(tmp_path / "study.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("0 finished, 4 missing, about ")
    assert sum("sa-4" in line for line in lines) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]
    assert len(find_study(tmp_path / "study.json").specs) == 4


def test_snakefile_is_there(capsys):
    assert main(["snakefile"]) == 0 and Path(capsys.readouterr().out.strip()).is_file()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "A folder where a user called `reproduce` and then `gap`, and what both printed."
    folder = tmp_path_factory.mktemp("user")
    for name in ("random.py", "torch.py", "gpvae/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise SystemExit('this is not the module')")
    env = os.environ | {"GPVAE_RUNS": str(folder / "runs"), "PYTHONIOENCODING": "ascii"}
    printed = {}
    gap = ["--test", "8", "--train", "4", "--valid", "8", "--temperatures", "3", "--chains", "2", "--methods",
           "vae"]
    for command, more in (("reproduce", ["--methods", "vae", "gpvae"]), ("gap", gap)):
        words = [*GPVAE, command, "--z-dims", "2", *SET, "--device", "cpu", "--quiet", *more]
        printed[command] = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    return folder, printed


@pytest.mark.parametrize("command, start", [("reproduce", "digits"), ("gap", "gap_digits")])
def test_rows_and_page_go_to_the_current_folder(page, command, start):
    "On an ASCII terminal too, and with files of the same names as modules."
    folder, printed = page
    done = printed[command]
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    *table, path = done.stdout.splitlines()
    assert Path(path).parent == folder / "results" and Path(path).name.startswith(start)
    text = Path(path).read_text()
    assert "<table" in text and str(folder) not in text and "data:image/" in text
    assert any(line.startswith("vae ") for line in table) and "?" in done.stdout  # a true minus, replaced
    notebook = nbformat.read(Path(path).with_suffix(".ipynb"), as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_only_the_asked_methods_of_this_store_are_shown(page, runs, capsys, monkeypatch, idle):
    folder, printed = page
    monkeypatch.setenv("GPVAE_RUNS", str(folder / "runs"))
    monkeypatch.setattr("gpvae.study.report.render", lambda study, store: folder / "page.html")
    words = ["--z-dims", "2", *SET, "--device", "cpu", "--quiet", "--out", str(folder / "results")]
    assert main(["reproduce", "--methods", "vae", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.split()[0] in ("vae", "gpvae")] == ["vae"]
    assert len(Store(folder / "results").table("runs")) == 2


def test_a_failure_is_printed_and_the_rest_is_shown(tmp_path, runs, capsys, monkeypatch):
    start = launch.Launcher.start

    def break_one(self, config, shown):
        return start(self, config if config.method == "vae" else resolve(config.spec.change(lr=1e18)), shown)

    monkeypatch.setattr(launch.Launcher, "start", break_one)
    words = ["--methods", "vae", "gpvae", "--z-dims", "2", *SET, "--device", "cpu", "--quiet"]
    monkeypatch.setattr("gpvae.study.report.render", lambda study, store: tmp_path / "page.html")
    assert main(["reproduce", *words, "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("gpvae reproduce: digits gpvae z=2 seed=0 failed with status 2: gpvae run: step ")
    assert err.count("\n") == 1 and out.splitlines()[-1] == str(tmp_path / "page.html") and "vae" in out


def test_own_images_have_a_page_of_their_own(runs, tmp_path, monkeypatch, capsys):
    "From the path of a file with the name of a known set."
    monkeypatch.setenv("GPVAE_DATA", str(tmp_path / "data"))
    pixels = np.random.RandomState(0).randint(0, 256, (300, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", x_train=pixels[:200], x_test=pixels[200:])
    words = ["--dataset", str(tmp_path / "digits.npz"), "--methods", "vae", "--z-dims", "2", *SET]
    assert main(["reproduce", *words, "--device", "cpu", "--quiet", "--out", str(tmp_path / "out")]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path.name.startswith("digits_own") and str(tmp_path) not in path.read_text()


# --- how a command ends ---------------------------------------------------------------------------


@pytest.mark.parametrize("error, status, message",
                         [(KeyboardInterrupt(), 130, "interrupted; the same command continues"),
                          (cli.Terminated(), 143, "ended; the same command continues"),
                          (FloatingPointError("step 3: the loss\nis inf"), 2, "step 3: the loss is inf")])
@pytest.mark.parametrize("attached", [[], ["--attached"]])
def test_exit_status(capsys, monkeypatch, error, status, message, attached):
    def fail(*args):
        raise error

    monkeypatch.setattr("gpvae.study.run.run", fail)
    monkeypatch.setattr(cli, "end_with_parent", lambda: None)
    assert main(["run", *attached]) == status
    out, err = capsys.readouterr()
    assert (out if attached else err) == f"gpvae run: {message}\n" and not (err if attached else out)


def test_a_reader_who_stops_is_no_error():
    with subprocess.Popen([*GPVAE, "plan"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 0


def test_one_thread_unless_the_user_asks_for_more():
    code = "import os\nfrom gpvae.study import cli\ncli.main(['snakefile'])\n"
    code += "print(os.environ['OMP_NUM_THREADS'])"
    for given, expected in (({}, "1"), ({"OMP_NUM_THREADS": "3"}, "3")):
        env = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")} | given
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True,
                              check=True)
        assert done.stdout.split()[-1] == expected


@pytest.mark.parametrize("command", [[], ["run"], ["refit"], ["plan"], ["reproduce"], ["gap"], ["snakefile"]])
def test_help_imports_the_standard_library_alone(command):
    code = "import sys\nfrom gpvae.study.cli import main\n"
    code += f"try: main({[*command, '--help']})\nexcept SystemExit: pass\n"
    done = subprocess.run([sys.executable, "-c", code + "print(*sys.modules)"], capture_output=True,
                          text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert {name for name in modules if name.split(".")[0] == "gpvae"} == {"gpvae", "gpvae.study",
                                                                           "gpvae.study.cli"}
    assert not {"torch", "numpy", "pandas", "IPython"} & modules and len(modules) < 200


# --- a full disk ----------------------------------------------------------------------------------


@contextmanager
def room(size):
    "No file can grow beyond so many bytes: a write fails as on a full disk."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_the_command_goes_on_afterwards(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GPVAE_DATA", str(tmp_path / "data"))
    words = ["reproduce", "--methods", "vae", "--z-dims", "2", *SET, "--device", "cpu", "--quiet"]

    def full(out, size, place):
        with room(size):
            assert main([*words, "--out", str(tmp_path / out)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{place} cannot be written (" in error, error

    full("a", 20_000, "")  # the prepared images
    load("digits")
    full("a", 2000, "checkpoint.safetensors")
    assert not list(runs.glob("*/metrics.json"))
    whole = run(RunSpec("digits", "vae", 2, settings=TINY), runs, "cpu", bar=False)
    full("a", 800, ".npz")
    full("a", 20_000, ".ipynb")
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert read_json(whole.folder / "metrics.json")["row"]["run"] in (tmp_path / "a" / "runs.csv").read_text()
    left = [p for p in tmp_path.rglob("*") if p.name.startswith((".", "tmp")) and p.name != ".lock"]
    assert not left
