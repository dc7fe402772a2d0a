"Runs side by side: parents first, a failure stops no other, rows are kept, children end in time."

import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from gpvae.checks import InputError
from gpvae.files import locked
from gpvae.study import launch
from gpvae.study.config import RunSpec, refit_of, resolve
from gpvae.study.launch import Launcher, describe_plan, finish, missing, plan, seconds_of
from gpvae.study.run import TIMES, run, time_run
from gpvae.study.store import Store
from gpvae.study.studies import Study
from gpvae.training import load_checkpoint

TINY = dict(epochs=2, hidden=(8,), n_train=100, n_valid=20, n_test=60, k=2)
VAE = RunSpec("digits", "vae", 2, 0, "smoke", settings=TINY)
GPVAE = RunSpec("digits", "gpvae", 2, 0, "smoke", settings=TINY)
FAILS = VAE.change(lr=1e18)
REFIT = refit_of(VAE, epochs=1)
STEPPED = REFIT.change(natural_step=0.5)


def study_of(**lines):
    "A study of named lines."
    return Study("tried", "Tried", tuple(lines.values()), tuple(lines))


def seeds_of(spec, n):
    "The same specification with several seeds, on one line."
    specs = tuple(RunSpec(**vars(spec) | {"seed": seed}) for seed in range(n))
    return Study("seeds", "Seeds", specs)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A study whose parents nobody asked for, and of which one run fails: folder, study, store, failures."
    folder = tmp_path_factory.mktemp("made")
    study = study_of(vae=VAE, fails=FAILS, child=refit_of(FAILS, epochs=1), stepped=STEPPED)
    store = Store(folder / "out")
    failures = finish(study, store, folder / "runs", device="cpu", bar=False)
    return folder, study, store, failures


def test_a_failure_is_named_and_stops_none_but_its_children(made):
    folder, study, store, failures = made
    messages = {failure.config.id: str(failure) for failure in failures}
    parent, child = resolve(FAILS).id, resolve(refit_of(FAILS, epochs=1)).id
    assert set(messages) == {parent, child}
    assert messages[parent].startswith("digits vae z=2 seed=0 failed with status 2: gpvae run: step ")
    assert messages[child].endswith(f"it begins with run {parent}, which failed")
    assert set(study.results(store).rows["line"]) == {"vae", "stepped"}


def test_numbers_are_those_of_runs_one_after_the_other(made, tmp_path):
    folder, study, store, _ = made
    rows = study.results(store).rows.set_index("line")
    for line, spec in dict(vae=VAE, stepped=STEPPED).items():
        alone = run(spec, tmp_path, "cpu", bar=False)
        assert rows.loc[line, "run"] == alone.config.id
        assert rows.loc[line, "elbo"] == pytest.approx(alone.row["elbo"], rel=1e-5)
        weights = [load_checkpoint(root / alone.config.trained.id / "checkpoint.safetensors")[0]
                   for root in (folder / "runs", tmp_path)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_rows_have_times_and_the_first_seed_has_pictures(made):
    folder, study, store, _ = made
    results = study.results(store)
    assert results.rows[list(TIMES)].notna().all(axis=None)
    assert all("samples" in arrays and len(arrays["images"]) == 10 for arrays in results.arrays.values())
    several = seeds_of(VAE, 2)
    assert not finish(several, store, folder / "runs", 1, "cpu", bar=False)
    drawn = ["samples" in several.results(store).arrays[run] for run in several.results(store).rows["run"]]
    assert drawn == [True, False]


def test_a_second_call_starts_only_what_failed(made, monkeypatch):
    folder, study, store, _ = made
    started, start = [], Launcher.start

    def record(self, config, shown):
        started.append(config.id)
        return start(self, config, shown)

    monkeypatch.setattr(Launcher, "start", record)
    monkeypatch.setattr(launch, "time_run", lambda *args: pytest.fail("timed again"))
    before = (store.folder / "runs.csv").read_bytes()
    assert len(finish(study, store, folder / "runs", 2, "cpu", bar=False)) == 2
    assert started == [resolve(FAILS).id] and (store.folder / "runs.csv").read_bytes() == before


def test_a_row_in_the_store_needs_no_run_folder(made, tmp_path, monkeypatch):
    folder, _, store, _ = made
    monkeypatch.setattr(Launcher, "start", lambda *args: pytest.fail("a run has started"))
    study = study_of(vae=VAE, stepped=STEPPED)
    assert finish(study, store, tmp_path / "empty", 2, "cpu", bar=False) == []
    assert describe_plan(plan(study, store, tmp_path / "empty")) == "2 finished, none missing"
    assert len(missing(study, store, tmp_path / "empty", folders=True)) == 3  # for what needs the models


def test_a_finished_run_is_kept_by_another_store(made, tmp_path, monkeypatch):
    folder, _, store, _ = made
    monkeypatch.setattr(Launcher, "start", lambda *args: pytest.fail("a run has started"))
    study, other = study_of(vae=VAE), Store(tmp_path)
    assert finish(study, other, folder / "runs", 2, "cpu", bar=False) == []
    assert study.results(other).rows["infer_ms_one"].notna().all()
    assert "samples" in other.arrays(resolve(VAE).id)


def test_runs_are_timed_only_where_they_were_made(runs, tmp_path, monkeypatch):
    study, store = study_of(vae=VAE), Store(tmp_path)
    run(VAE, runs, "cpu", bar=False)
    with monkeypatch.context() as m:
        m.setattr(launch, "device_name", lambda device: "another machine")
        assert finish(study, store, runs, 1, "cpu", bar=False) == []
    assert TIMES[0] not in store.table("runs")
    time_run(runs / resolve(VAE).id, "cpu", repeats=2)
    monkeypatch.setattr(launch, "time_run", lambda *args: pytest.fail("timed again"))
    finish(study, store, runs, 1, "cpu", bar=False)
    assert store.table("runs")["step_ms"].notna().all()


def test_parents_come_first_though_nobody_asked_for_them(tmp_path):
    jobs = missing(study_of(stepped=STEPPED, gpvae=GPVAE, refit=REFIT), Store(tmp_path), tmp_path / "runs")
    vae, gpvae, refit, stepped = (resolve(spec).id for spec in (VAE, GPVAE, REFIT, STEPPED))
    assert {id: job.parents for id, job in jobs.items()} == {vae: (), gpvae: (), refit: (vae,),
                                                             stepped: (refit,)}
    assert [job.depth for job in jobs.values()] == [0, 0, 1, 2]


def test_wrong_numbers_are_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(Launcher, "start", lambda *args: pytest.fail("a run has started"))
    for more, message in ((dict(jobs=0), "jobs is 0"), (dict(device="cudo"), "did you mean 'cuda'")):
        with pytest.raises(InputError, match=message):
            finish(study_of(vae=VAE), Store(tmp_path / "out"), tmp_path, bar=False, **more)
    with pytest.raises(InputError, match="epochs is 0"):
        finish(study_of(vae=VAE, bad=VAE.change(epochs=0)), Store(tmp_path / "out"), tmp_path, bar=False)
    assert not list(tmp_path.iterdir())


def test_the_own_package_is_imported_and_nothing_of_the_current_folder(tmp_path, monkeypatch):
    for name in ("random.py", "torch.py", "gpvae/__init__.py", "other/gpvae/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('this is not the module')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    assert finish(study_of(vae=VAE), Store(tmp_path / "out"), tmp_path / "runs", 1, "cpu", bar=False) == []


def test_one_bar_for_the_grid_and_one_for_the_run_in_front(tmp_path, capfd):
    finish(seeds_of(VAE, 2), Store(tmp_path / "out"), tmp_path / "runs", 2, "cpu", bar=True)
    error = capfd.readouterr().err
    assert "all runs: 100%" in error and "2/2" in error
    assert ("vae seed 0" in error) != ("vae seed 1" in error)  # two start at once, the first takes the line


# --- what a plan expects --------------------------------------------------------------------------


def rows_of(*rows):
    "Rows that differ so from one of the VAE with 100 s of training."
    usual = dict(machine="a machine", dataset="digits", budget="smoke", method="vae", z_dim=2, n_train=100,
                 epochs=10, train_seconds=100.0)
    return pd.DataFrame([usual | row for row in rows])


@pytest.mark.parametrize(
    "rows, seconds",
    [
        ([{}], 20.0),  # 0.1 s an image and epoch, 2 epochs
        ([dict(method="gpvae", train_seconds=1e9), {}], 20.0),  # its own method comes first
        ([dict(method="sa-4", train_seconds=530.0)], 20.0),  # by the cost of a step
        ([dict(dataset="mnist", train_seconds=1e9), {}], 20.0),
        ([dict(z_dim=9, train_seconds=1e9), {}], 20.0),
        ([{}, dict(train_seconds=300.0)], 40.0),  # the median
        ([dict(epochs=0)], 2 * 100 * launch.USUAL_RATE),
        ([], 2 * 100 * launch.USUAL_RATE),
    ],
)
def test_seconds_are_those_of_the_nearest_rows(rows, seconds):
    assert seconds_of(resolve(VAE), rows_of(*rows)) == pytest.approx(seconds)
    assert seconds_of(resolve(VAE.change(natural_step=0.5)), rows_of(*rows)) == 0


def test_a_plan_is_one_table_and_one_line(tmp_path):
    table = plan(study_of(stepped=STEPPED, gpvae=GPVAE), Store(tmp_path / "out"), tmp_path / "runs")
    assert table.index.tolist() == [("stepped", 2), ("gpvae", 2), ("runs that others begin with", 2)]
    assert table["missing"].tolist() == [1, 1, 2] and not any(tmp_path.iterdir())
    assert describe_plan(table) == "0 finished, 4 missing, about 1 min with 2 side by side"
    assert (describe_plan(table.assign(hours=2.0), 3)
            == "0 finished, 4 missing, about 2.0 hours with 3 side by side")


# --- stopped commands -----------------------------------------------------------------------------

FINISH = """
import signal, sys
from pathlib import Path
from gpvae.study.launch import finish
from gpvae.study.store import Store
from gpvae.study.studies import find_study
def end(number, frame): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, signal.default_int_handler)
finish(find_study(sys.argv[1]), Store(sys.argv[2]), sys.argv[3], 2, "cpu", bar=False)
"""


def children(pid):
    "Processes that a process has started."
    return [int(p) for path in Path(f"/proc/{pid}/task").glob("*/children") for p in path.read_text().split()]


def alive(pid):
    "Whether a process still works; one that is dead but not waited for does not."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds=120):
    "Wait until something is true."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_children_end_with_their_parent(tmp_path, number):
    seeds_of(VAE.change(epochs=100_000, checkpoint_seconds=0.1), 2).write(tmp_path / "study.json")
    words = [tmp_path / "study.json", tmp_path / "out", tmp_path / "runs"]
    with subprocess.Popen([sys.executable, "-c", FINISH, *words], stderr=subprocess.DEVNULL) as process:
        trained = "runs/*/checkpoint.safetensors"
        wait_for(lambda: process.poll() is not None or len(list(tmp_path.glob(trained))) == 2)
        started = children(process.pid)
        process.send_signal(number)
        process.wait(30)
    assert len(started) == 2
    wait_for(lambda: not any(map(alive, started)), seconds=20)
    for folder in (tmp_path / "runs").iterdir():
        with locked(folder):  # nobody holds it
            assert not (folder / "metrics.json").exists()


def test_a_child_that_does_not_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "PATIENCE", 0.5)
    deaf = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(99)"
    monkeypatch.setattr(launch, "CHILD", deaf)
    launcher = Launcher(tmp_path, "cpu", False, 0)
    process = launcher.start(resolve(VAE), False)
    time.sleep(0.5)
    begin = time.monotonic()
    launcher.stop()
    assert process.wait(5) == -signal.SIGKILL and time.monotonic() - begin < 5
    with pytest.raises(InputError, match="no run is started any more"):
        launcher.start(resolve(VAE), False)
