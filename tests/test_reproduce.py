"Pages: failing runs are named and the others kept, a stopped command takes its children along, and a page says what the store says."
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest

from gpvae.checks import InputError
from gpvae.files import locked
from gpvae.statistics import bootstrap_interval
from gpvae.study import commands, reproduce as module
from gpvae.study.reproduce import opening, render, reproduce, shown, time_missing, train_missing
from gpvae.study.run import run
from gpvae.study.spec import BUDGETS, RunSpec, Settings
from gpvae.study.store import Store, checkout
from gpvae.study.tables import paired, seed_difference

RESULTS = checkout() / "nbs" / "results"
TINY = (("epochs", 2), ("hidden", (8,)))

# --- runs side by side --------------------------------------------------------------------------------------------------------------------------

def test_a_failing_run_is_named_and_the_others_are_kept(runs):
    specs = [RunSpec("digits", "vae", settings=TINY), RunSpec("digits", "gpvae", settings=TINY + (("lr", 1e9),)), RunSpec("digits", "vae", seed=1, settings=TINY)]
    with pytest.raises(InputError, match="gpvae seed 0 ended with status 2: .*step"): train_missing(specs, runs, 2, "cpu", bar=False)
    assert sum((f / "metrics.json").exists() for f in runs.iterdir()) == 2
    assert train_missing(specs[:1], runs, 1, "cpu", bar=False)[0].metrics["method"] == "vae"

@pytest.mark.parametrize("spec", [
    RunSpec("digits", "gpvae", 3, 7, "cpu", "bernoulli", 120, "stochastic", TINY + (("covariance", "none"), ("milestones", (1.,)), ("n_valid", None), ("own_features", True))),
    RunSpec("/a folder/my.npz", "sa-4"), RunSpec("mnist", "vae", settings=(("network", "mlp"), ("weight_decay", 1e-12)))])
def test_every_word_of_a_specification_reaches_the_process(spec):
    args = commands._run_parser().parse_args(module._arguments(spec, Path("/a folder/runs"), "cpu"))
    assert commands._spec_of(args) == spec and (args.runs, args.device) == ("/a folder/runs", "cpu")

def test_runs_are_timed_once_and_only_where_they_were_made(runs, monkeypatch):
    r = run(RunSpec("digits", "vae", settings=TINY), runs, "cpu", bar=False)
    with monkeypatch.context() as m:
        m.setattr("gpvae.study.reproduce.device_name", lambda device: "another machine")
        assert time_missing([r], "cpu")[0].metrics["infer_ms_one"] is None
    timed, = time_missing([r], "cpu")
    monkeypatch.setattr("gpvae.study.reproduce.time_run", lambda *args: pytest.fail("timed again"))
    assert timed.metrics["infer_ms_one"] > 0 and time_missing([timed], "cpu")[0].metrics == timed.metrics

# --- stopped commands ---------------------------------------------------------------------------------------------------------------------------

def children(pid):
    "Processes that a process has started."
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

def alive(pid):
    "Whether a process still works: one that is dead but not waited for does not."
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError): return False

def wait_for(condition, process=None, seconds=120):
    "Wait until something is true."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and (process is None or process.poll() is None), process and process.stderr.read()
        time.sleep(0.05)

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}

@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are looked up in /proc")
@pytest.mark.parametrize("number", STATUS)
def test_a_stopped_command_takes_its_runs_along(runs, tmp_path, number):
    command = [sys.executable, "-m", "gpvae.study.commands", "reproduce", "--methods", "vae", "--seeds", "2", "--quiet", "--device", "cpu", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(list(runs.glob("*/checkpoint.safetensors"))) == 2, process)
        started = children(process.pid)
        process.send_signal(number)
        err = process.communicate()[1]
    assert process.returncode == STATUS[number] and len(started) == 2
    if number != signal.SIGKILL: assert err.count("\n") == 1 and "the same command continues" in err
    wait_for(lambda: not any(map(alive, started)), seconds=20)
    for folder in runs.iterdir():
        with locked(folder): assert not (folder / "metrics.json").exists() # nobody holds it, and a rerun continues

RENDER = """
import sys
from pathlib import Path
from gpvae.study.commands import _guarded
from gpvae.study.reproduce import render
sys.exit(_guarded(lambda: render("digits", "smoke", Path(sys.argv[1]), Path(sys.argv[2])), "gpvae_reproduce"))
"""

@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_rendering_leaves_nothing(store, runs, number):
    before = sorted(store.folder.iterdir())
    with subprocess.Popen([sys.executable, "-c", RENDER, runs, store.folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: children(process.pid), process) # the kernel
        started = children(process.pid)
        time.sleep(1)
        process.send_signal(number)
        err = process.communicate()[1]
    assert process.returncode in (STATUS[number], 130)
    assert 'File "<string>"' not in err # no traceback of its own; what an interrupted kernel says is the kernel's
    wait_for(lambda: not any(map(alive, started)), seconds=20)
    assert sorted(store.folder.iterdir()) == before

# --- what a page says ---------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def store(tmp_path):
    "A copy of the committed results, without pages."
    import shutil
    return Store(shutil.copytree(RESULTS, tmp_path / "out", ignore=shutil.ignore_patterns("*.ipynb", ".*")))

def texts(nb): return [str(o.get("data", o)) for c in nb.cells for o in c.get("outputs", [])]

def test_the_page_renders_from_the_results_files_alone(store, tmp_path):
    kept = dict(os.environ)
    page = nbformat.read(render("digits", "smoke", tmp_path / "no runs", store.folder), as_version=4)
    outputs = [o for c in page.cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o.output_type in ("error", "stream")] and dict(os.environ) == kept
    assert any("run folders are not on this machine" in t for t in texts(page)) and any("IWAE-100" in t for t in texts(page))
    assert str(tmp_path) not in nbformat.writes(page) and "parameters" in str([c.metadata for c in page.cells])
    assert page.cells[1].source.startswith("# Likelihoods on the digits of scikit-learn\n") and "skip_exec: true" in page.cells[0].source
    for cell in page.cells: # no code is shown, and every picture has a text
        assert cell.cell_type != "code" or cell.source.startswith("#| echo: false")
        if any("image/png" in o.get("data", {}) for o in cell.get("outputs", [])): assert "#| fig-alt: " in cell.source
    assert opening(shown("digits", "smoke", store=store)) in [o.get("data", {}).get("text/markdown") for o in outputs]

def test_a_page_opens_with_question_answer_and_cost(store):
    s = shown("digits", "smoke", store=store)
    d, said = paired(s.rows, s.images, "gpvae"), opening(s)
    low, high = bootstrap_interval(d)
    assert said.startswith("Does the GP encoder give the test images of the digits of scikit-learn a higher likelihood than the VAE")
    assert f"{d.mean():+.2f} [{low:+.2f}, {high:+.2f}] nats per image" in said and "95 % interval over 297 images of one seed" in said
    assert ("**Yes" in said) == (low > 0) and ("**No" in said) == (high < 0) and "A training step takes" in said and "3 models took" in said

def test_a_page_is_of_one_set_of_pixels(store):
    checksum = shown("digits", "smoke", store=store).rows["checksum"].iloc[0]
    assert len(shown("digits", "smoke", checksum=checksum, store=store).rows) == 3
    with pytest.raises(InputError, match="has no run of digits at budget smoke: gpvae_reproduce --dataset digits --budget smoke makes them"):
        shown("digits", "smoke", checksum="0" * 12, store=store)

@pytest.mark.parametrize("dataset, budget, message", [("mnist", "cpu", "gpvae_reproduce --dataset mnist --budget cpu makes them"), ("digits", "smokee", "did you mean 'smoke'")])
def test_a_missing_row_names_its_command(tmp_path, dataset, budget, message):
    with pytest.raises(InputError, match=message): shown(dataset, budget, store=Store(tmp_path))

def test_the_template_says_what_is_missing(store, runs):
    with pytest.raises(InputError, match="gpvae_reproduce --dataset mnist --budget cpu makes them"): render("mnist", "cpu", runs, store.folder)
    assert not list(store.folder.glob("*.ipynb"))

@pytest.fixture
def short(monkeypatch):
    "The smoke budget made short, here and as words for the processes that are started."
    words = dict(n_train=100, n_valid=20, n_test=60, hidden=(8,), epochs=2, k=5, kl_warmup=1)
    start = module._start
    monkeypatch.setitem(BUDGETS, "smoke", Settings(**words))
    monkeypatch.setattr(module, "_start", lambda spec, *args: start(replace(spec, settings=tuple(words.items())), *args))

def test_own_images_have_a_page_of_their_own(short, runs, tmp_path, monkeypatch, capsys):
    "From the path of a file to the page, with a name that a known set has too."
    monkeypatch.setenv("GPVAE_DATA", str(tmp_path / "data"))
    pixels = np.random.RandomState(0).randint(0, 256, (300, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", x_train=pixels[:200], x_test=pixels[200:])
    out = tmp_path / "out"
    page = reproduce(str(tmp_path / "digits.npz"), methods=["vae"], jobs=1, device="cpu", runs=runs, out=out, bar=False)
    assert page == out / "digits_own.ipynb" and str(tmp_path) not in page.read_text() and "IWAE-5" in capsys.readouterr().out
    rows = Store(out).runs()
    assert rows["dataset"].tolist() == ["digits"] and len(rows["checksum"].iloc[0]) == 12 and rows["infer_ms_one"].notna().all()

def test_methods_are_told_apart_by_the_intervals_of_seeds_and_images():
    s = shown("static_mnist", "cpu")
    clear, rest = s.told_apart.split("Not told apart")
    for method in s.methods[1:]:
        _, low, high = seed_difference(s.rows, s.images, method)
        assert (f"`{method}`" in clear) == (low > 0 or high < 0) != (f"`{method}`" in rest)
    assert f"Of {len(s.methods) - 1} methods" in clear and s.methods[0] == "vae"
    one = s._replace(rows=s.rows[s.rows["seed"] == 0])
    assert one.told_apart == "" and s._replace(rows=s.rows[s.rows["method"] == "vae"]).told_apart == ""
