"Pages: failing runs are named and the others kept, a stopped command takes its children along, and a page says what the store says."
import base64
import io
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
from PIL import Image

from gpvae.checks import InputError
from gpvae.files import locked, sha256
from gpvae.encoders.gp import Uncertainty
from gpvae.statistics import bootstrap_interval
from gpvae.study import commands, reproduce as module
from gpvae.study.reproduce import opening, render, reproduce, shown, time_missing, train_missing
from gpvae.study.run import run
from gpvae.study.catalogue import _treated
from gpvae.study.spec import BUDGETS, RunSpec, Settings, settings_text
from gpvae.study.store import Store, checkout
from gpvae.study.tables import paired, seed_difference
from test_store import made_up

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
    command = [sys.executable, "-m", "gpvae.study.commands", "reproduce", "--methods", "vae", "--seeds", "2", "--set", "epochs=100000", "--quiet", "--device", "cpu", "--out", str(tmp_path / "out")]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) # a shell that starts tests aside has it ignored
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
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
    assert "**One seed cannot tell**" in said and "A training step takes" in said and "3 models took" in said

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

def test_grey_pictures_of_a_user_go_through_the_whole_page(runs, tmp_path, monkeypatch, capsys):
    "One command, from a file of 28 × 28 grey pictures that no table knows to likelihoods in bits, curves, samples and hard images; again it changes nothing."
    monkeypatch.setenv("GPVAE_DATA", str(tmp_path / "data"))
    pixels = np.random.RandomState(0).randint(0, 256, (300, 28, 28, 1)).astype(np.uint8)
    np.savez(tmp_path / "my.npz", x_train=pixels[:200], x_test=pixels[200:])
    command = ["--dataset", str(tmp_path / "my.npz"), "--likelihood", "gaussian", "--budget", "smoke", "--methods", "vae", "gpvae", "--seeds", "1", "--n_train", "100",
               *(w for s in ("epochs=2", "hidden=(8,)", "n_valid=20", "n_test=60", "k=5", "kl_warmup=1") for w in ("--set", s)), "--jobs", "1", "--device", "cpu", "--runs", str(runs), "--out", str(tmp_path / "out"), "--quiet"]
    printed = []
    for _ in range(2):
        assert commands.reproduce_command(command) == 0
        printed.append(capsys.readouterr().out)
    path, = (tmp_path / "out").glob("*.ipynb")
    page, text = nbformat.read(path, as_version=4), path.read_text()
    assert printed[0] == printed[1] and path.name.startswith("my_gaussian_n100_smoke") and str(tmp_path) not in text
    for words in ("bits per dimension", "A density of grey levels", "784 pixels", "× vae"): assert words in text
    assert sum("image/png" in o.get("data", {}) for c in page.cells for o in c.get("outputs", [])) == 5, "pictures" # likelihoods, times, curves, samples, hard images

def test_methods_are_told_apart_by_the_intervals_of_seeds_and_images():
    s = shown("static_mnist", "cpu")
    clear, rest = s.told_apart.split("Not told apart")
    for method in s.methods[1:]:
        _, low, high = seed_difference(s.rows, s.images, method)
        assert (f"`{method}`" in clear) == (low > 0 or high < 0) != (f"`{method}`" in rest)
    assert f"Of {len(s.methods) - 1} methods" in clear and s.methods[0] == "vae"
    one = s._replace(rows=s.rows[s.rows["seed"] == 0])
    assert one.told_apart == "" and s._replace(rows=s.rows[s.rows["method"] == "vae"]).told_apart == ""

# --- columns and pictures of a page -------------------------------------------------------------------------------------------------------------

GREY = dict(dataset="mnist", likelihood="gaussian", binarisation="none", active_units=2, ess=9., train_seconds=1., epoch_seconds=.5, peak_mb=300., infer_ms_one=1., step_ms=2.)

def grey_run(method, seed, z, level, inflation=1.):
    "A made-up run on grey MNIST; a wider proposal is worth 9 nats to it."
    said = "inflation=1.4 " * (inflation > 1) + "weight_decay=0.02"
    own = dict(z_dim=z, spec=sha256([method, seed, z, inflation])[:12], settings=said, inflation=inflation, infer_ms_batch={"vae": 2., "gpvae": 3.}[method])
    return made_up(method, seed, level + 0.1 * seed + 9 * (inflation > 1), **GREY | own)

@pytest.fixture
def grey(tmp_path):
    "Three seeds of two methods with two numbers of latents, the second better by 2 nats."
    store = Store(tmp_path / "grey")
    store.keep([grey_run(m, s, z, level, i) for m, level in (("vae", 500.), ("gpvae", 502.)) for s in range(3) for z in (10, 20) for i in (1., 1.4)])
    return store

def grey_page(store, z_dims="20"):
    return shown("mnist", "cpu", store=store, methods="vae gpvae", likelihood="gaussian", z_dims=z_dims, n_train=10_000, settings="weight_decay=0.02")

def columns_of(markdown):
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line.startswith("|")]
    return {line[0]: dict(zip(head, line)) for line in lines}

def test_the_likelihoods_of_a_page_stand_side_by_side_with_the_best_marked(grey):
    lines = columns_of(grey_page(grey).marks)
    assert list(lines) == ["`vae`", "`gpvae`"] and lines["`gpvae`"]["ELBO"] == "**501.10 ± 0.10**" and lines["`vae`"]["ELBO"] == "499.10 ± 0.10"
    assert lines["`gpvae`"]["IWAE-100"] == "**502.10 ± 0.10**" and lines["`gpvae`"]["IWAE-100, variances × 1.4"] == "**511.10 ± 0.10**"
    bits = np.log2(255) - 511.1 / (784 * np.log(2))
    assert lines["`gpvae`"]["IWAE-100, variances × 1.4, bits per dimension"] == f"**{bits:.3f}**" and bits > 0

def test_methods_by_numbers_of_latents(grey):
    "A table for each likelihood, and a column for each number; no mean is over two."
    text = grey_page(grey, "[10, 20]").marks
    assert text.count("**ELBO**") == 1 and text.count("| method | z = 10 | z = 20 |") == 4
    assert columns_of(text)["`gpvae`"]["z = 20"].startswith("**")

def test_the_annealed_likelihood_stands_where_it_was_measured(grey):
    row = grey.runs().query("method == 'vae' and seed == 0 and z_dim == 20 and inflation == 1").iloc[0].to_dict()
    grey.keep_gaps(row, {f"{row['spec']}_test_log_px": np.full(7, 540.)})
    lines = columns_of(grey_page(grey).marks)
    assert lines["`vae`"]["log p(x), 7 images"] == "**540.00** (1 seed)" and lines["`gpvae`"]["log p(x), 7 images"] == ""

def test_a_mean_over_fewer_seeds_says_so(grey):
    "Two of three seeds were judged by a wider proposal: their column says so, and their widths are compared on the same two."
    store = Store(grey.folder.parent / "fewer")
    store.keep([grey_run(m, s, 20, level, i) for m, level in (("vae", 500.), ("gpvae", 502.)) for s in range(3) for i in (1., 1.4) if i == 1 or s < 2])
    lines, widths = columns_of(grey_page(store).marks), grey_page(store).widths
    assert lines["`vae`"]["IWAE-100, variances × 1.4"] == "509.05 ± 0.07 (2 seeds)" and lines["`vae`"]["ELBO"] == "499.10 ± 0.10"
    assert widths["seeds"].tolist() == [2] * 4 and widths.loc[("vae", 1.4), "iwae"] - widths.loc[("vae", 1.), "iwae"] == pytest.approx(9)

SANDWICH = dict(sandwich_error=.05, sandwich_largest=1.2, simulated=32, temperatures=50, chains=8, start="best", device="a machine", k=100, test_seconds_annealed=2., test_seconds_full=1., test_seconds_widths=.4)
SANDWICH |= {"iwae_0.5": 500., "iwae_1.0": 500.}

@pytest.mark.parametrize("distance, closes", [(0.1, True), (0.39, True), (0.41, False), (-0.2, True), (3., False)])
def test_a_page_says_whether_the_two_sided_bound_closes(grey, distance, closes):
    "Twice the error above the mean, against half a nat; the time of an image is that of annealing and of its start."
    assert grey_page(grey).annealed == ""
    for r in grey.runs().query("seed == 0 and inflation == 1").to_dict("records"):
        grey.keep_gaps(r | SANDWICH | {"sandwich": distance if r["z_dim"] == 20 and r["method"] == "gpvae" else 0.}, {f"{r['spec']}_test_{k}": np.full(10, 540.) for k in ("log_px", "iwae_1.0")})
    assert shown("mnist", "cpu", store=grey, methods="vae", likelihood="gaussian", z_dims="20", n_train=10_000, settings="weight_decay=0.02", seeds=1).annealed != ""
    s = grey_page(grey, "[10, 20]")
    assert s._replace(rows=s.rows[s.rows["seed"] > 0]).annealed == "" # of other seeds nothing was measured
    assert ("The bounds close below 0.5 nats for every model." in s.annealed) == closes and ("**The bounds do not close below 0.5 nats for `gpvae` at z = 20**" in s.annealed) == (not closes)
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in s.annealed.splitlines() if line.startswith(("| 10", "| 20"))]
    assert [line[:2] for line in lines] == [["10", "`vae`"], ["10", "`gpvae`"], ["20", "`vae`"], ["20", "`gpvae`"]] and {*map(len, lines)} == {7}
    assert lines[3][2:] == ["1", f"{distance:.2f} ± 0.05", "1.20", "300", "20"] and "search for its start" in s.annealed
    assert columns_of(grey_page(grey).marks)["`vae`"]["IWAE-100, the same images"] == "**540.00** (1 seed)"

def test_what_dreams_and_a_step_win_stands_beside_the_run_as_trained(grey):
    "Seed by seed and image by image, of each size; the refit of a density has its dreams from posteriors."
    assert len(grey_page(grey).treated) == 0
    spec = RunSpec("mnist", "vae", 20, 0, "cpu", "gaussian", 10_000, "none", (("weight_decay", 0.02),))
    ways = {"a step": 3., "refitted": 4., "refitted, a step": 5.}
    assert list(_treated(spec)) == list(ways) and dict(_treated(spec)["refitted"].settings)["dream_source"] == "posterior"
    for what, more in ways.items():
        for seed in range(2 if what == "refitted" else 1):
            said = settings_text(_treated(replace(spec, seed=seed))[what].settings)
            r = grey_run("vae", seed, 20, 500. + more)
            r.metrics.update(settings=said, spec=sha256([what, seed])[:12])
            grey.keep([r])
    table = grey_page(grey, "[10, 20]").treated
    assert table.index.tolist() == [(20, "vae", what) for what in ("a step", "refitted", "refitted, a step")] and table["seeds"].tolist() == [1, 2, 1]
    refit = table.loc[(20, "vae", "refitted")]
    assert refit["IWAE-100 as trained"] == "500.05 ± 0.07" and refit["IWAE-100"] == "504.05 ± 0.07" and refit["IWAE-100 gained"] == "+4.00 [+4.00, +4.00]"
    assert table["ELBO gained"].str.split().str[0].tolist() == ["+3.00", "+4.00", "+5.00"]
    one = grey_page(grey).treated
    assert one.index.tolist() == [i[1:] for i in table.index] and list(one.columns) == list(table.columns)
    (grey.folder / "images" / "mnist-z20-cpu-10000.npz").unlink()
    assert grey_page(grey).treated["ELBO gained"].tolist() == ["+3.00", "+4.00", "+5.00"] # no images, no interval

@pytest.mark.parametrize("several", [False, True])
def test_sizes_are_named_where_methods_are_told_apart(grey, several):
    text = grey_page(grey, "[10, 20]" if several else "20").told_apart
    assert text.count("told apart from `vae` by IWAE") == 1 + several and text.startswith("z = 10. Of 1" if several else "Of 1") and ("z = 20. " in text) == several

def test_a_figure_keeps_its_size_and_its_colours(tmp_path):
    "Up to 256 colours, on white; as many grey levels are kept as they are."
    figure = np.full((40, 64, 4), 255, np.uint8)
    figure[:16, :, :3] = np.arange(16 * 64).reshape(16, 64, 1) // 5
    figure[30:] = 0 # transparent
    found = io.BytesIO()
    Image.fromarray(figure).save(found, "PNG")
    smaller = module._smaller(base64.b64encode(found.getvalue()).decode())
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(smaller))).convert("RGB")).astype(int)
    assert image.shape == (40, 64, 3) and abs(image[:30] - figure[:30, :, :3]).max() <= 1 and (image[30:] == 255).all()

def test_widths_of_a_page_with_changed_settings(grey):
    widths = grey_page(grey).widths
    assert widths.index.tolist() == [(m, i) for m in ("gpvae", "vae") for i in (1., 1.4)] and widths["iwae"].max() == pytest.approx(511.1)

def test_costs_are_beside_the_ratio_to_the_reference(grey):
    costs = grey_page(grey).costs
    assert costs.loc["gpvae", "batch of 128, ms"] == "3.00" and costs.filter(like="× vae").loc["gpvae"].tolist() == ["1.0", "1.5", "1.0"]
    assert costs.loc["vae", ["epoch, s", "training, s", "memory, MB"]].tolist() == ["0.5", "1", "300"]

def test_a_density_is_explained_and_a_probability_is_not(grey, store):
    assert "784 pixels" in grey_page(grey).grey and shown("digits", "smoke", store=store).grey == ""
    assert "bits" not in shown("digits", "smoke", store=store).marks

def test_hard_images_are_those_of_much_doubt_and_of_large_gaps(runs, tmp_path):
    spec, store = RunSpec("digits", "gpvae", 10, 0, "smoke"), Store(tmp_path / "out")
    r = run(replace(spec, settings=TINY), runs, "cpu", bar=False)
    store.keep([replace(r, metrics=r.metrics | dict(settings="", budget="smoke"))])
    s = shown("digits", "smoke", store=store)
    found = s.hardness(r.folder)
    assert list(found) == ["doubt of the process"] and found["doubt of the process"] == pytest.approx(Uncertainty(*(r.per_image[f"uncertainty_{k}"] for k in Uncertainty._fields)).nats.numpy())
    row = store.runs().iloc[0].to_dict()
    store.keep_gaps(row, {f"{row['spec']}_test_{k}": np.array(v, np.float32) for k, v in (("diagonal", [1., 5.]), ("elbo", [0., 1.]))})
    assert s.hardness(r.folder)["measured amortization gap"].tolist() == [1., 4.]
