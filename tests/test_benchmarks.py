"The benchmark: rivals that compute the same, turns that are paired, targets that are judged from the numbers, a command that fails in one line."
import copy
import dataclasses
import json
import subprocess
import sys
import time

import pytest
import torch

from gpvae.evaluation import timing
from gpvae.evaluation.ais import AISConfig, ais
from gpvae.checks import InputError
from gpvae.data import prepare_splits, to_float
from gpvae.files import read_json, write_json
from gpvae.evaluation.iwae import estimate_batch
from gpvae.study import benchmarks
from gpvae.study.benchmarks import (_BUSY, _GROUPS, _TARGETS, _Clocks, _Contender, _Watch, _Ratio, Sizes, _epoch_seconds, _epochs_on_gpu, _images, _iwae_contenders,
                                    _iwae_products, _linear_sizes, _model_of, _our_step, _Plain, _plain_iwae, _plain_step, _profile, _spec_of,
                                    _seeds_contenders, _stacked_step, _step_contenders, _step_products, _target_row, annealing, _annealing_report, benchmark, _profile_table, ratio, report,
                                    _take_turns, _targets_table, _times_table)
from gpvae.study.run import load_model, run, run_images
from gpvae.study.spec import METHODS, RunSpec, train_config
from gpvae.train import TrainConfig, epoch_seed, train

TINY = Sizes(hidden=(16, 12), z_dim=2, batch=8, images=3, k=20, side=6, batches=2)
CPU = torch.device("cpu")

@pytest.fixture
def vae(): return _model_of("vae", TINY).eval()

@pytest.fixture
def x(): return _images(16, TINY.side)[0]

def test_images_are_binary_seeded_and_of_the_size(x):
    assert x.shape == (16, 1, 6, 6) and set(x.unique().tolist()) == {0., 1.} and torch.equal(x, _images(16, 6)[0])

def test_digits_are_used_only_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("GPVAE_DATA", str(tmp_path))
    found, what = _images(4, 28)
    assert found.shape == (4, 1, 28, 28) and "Bernoulli" in what and not list(tmp_path.iterdir())

def test_the_plain_loop_computes_our_bound_and_leaves_our_weights_alone(vae, x):
    before = [p.clone() for p in vae.parameters()]
    plain = _Plain(vae)
    torch.manual_seed(3)
    ours = -vae.elbo(x).mean()
    torch.manual_seed(3)
    torch.testing.assert_close(plain.loss(x), ours)
    _plain_step(plain, x)()
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters()))

def test_every_step_learns(x):
    for step in (_plain_step(_Plain(_model_of("vae", TINY)), x), lambda s=_our_step("gpvae", TINY, x): -s()[0]):
        torch.manual_seed(0)
        losses = [float(step()) for _ in range(150)]
        assert sum(losses[-20:]) < sum(losses[:20])

def step_by_ms(model, x, config, monkeypatch):
    monkeypatch.setattr(timing, "milliseconds", lambda call, *args, **kwargs: [len(call())])
    timing.step_ms(model, x, config=config)

def step_of_the_benchmark(model, x, config, monkeypatch):
    monkeypatch.setattr(benchmarks, "_model_of", lambda method, sizes: model)
    _our_step("vae", TINY, x)()

@pytest.mark.parametrize("method, step", [("vae", step_by_ms), ("gpvae", step_by_ms), ("vae", step_of_the_benchmark)])
def test_the_timed_step_is_the_one_that_trains(method, step, monkeypatch):
    "One timed step and one epoch of one batch end with the same weights, to the bit."
    config = dataclasses.replace(train_config(_spec_of(method, TINY)), epochs=1, batch_size=8, kl_warmup=0)
    assert config.weight_decay > 0
    pixels, trained = (255 * _images(8, TINY.side)[0]).byte(), _model_of(method, TINY)
    timed = copy.deepcopy(trained)
    train(trained, pixels, pixels, "static", config, bar=False)
    torch.manual_seed(epoch_seed(config.seed, 0))
    step(timed, to_float(pixels[torch.randperm(8)], "static"), config, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), timed.state_dict().values()))

@pytest.mark.parametrize("max_norm", [100., 1.]) # nothing to cut; both seeds cut
def test_a_stacked_step_is_the_step_of_every_seed(x, max_norm):
    config = dataclasses.replace(train_config(_spec_of("vae", TINY)), max_norm=max_norm)
    assert config.weight_decay > 0
    models, x = [_model_of("vae", TINY) for _ in range(2)], x[:8]
    stacked = _stacked_step(models, x, config, randomness="same")
    for step in range(3):
        torch.manual_seed(step)
        weights = stacked()
    for i, model in enumerate(models):
        alone = timing.training_step(model, x, config, 8)
        for step in range(3):
            torch.manual_seed(step)
            alone()
        for name, p in model.named_parameters(): torch.testing.assert_close(weights[name][i].detach(), p.detach(), rtol=1e-4, atol=1e-5)

def test_seeds_are_counted_as_steps(x): assert {c.units for c in _seeds_contenders(TINY, x[:8], 2).values()} == {2}

@pytest.mark.parametrize("k", [1, 7, 50, 120])
def test_the_plain_estimator_uses_k_samples(vae, x, k):
    rows = []
    plain = _Plain(vae)
    plain.decoder.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    assert _plain_iwae(plain, x, k).shape == (16,) and sum(rows) == k and max(rows) <= 50

def test_the_plain_estimator_agrees_with_ours(vae, x):
    torch.manual_seed(0)
    with torch.inference_mode(): ours = estimate_batch(vae, x, 5000).iwae
    torch.testing.assert_close(_plain_iwae(_Plain(vae), x, 5000).double(), ours, atol=0.05, rtol=0)

def count_flops(monkeypatch, call):
    total, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: total.append(a.shape[0] * a.shape[1] * b.shape[1]) or mm(a, b, out=out))
    call()
    return sum(total)

def test_the_floor_has_the_products_of_the_networks(vae, monkeypatch):
    layers = _linear_sizes(vae)
    assert layers == [(36, 16), (16, 12), (12, 2), (12, 2), (2, 12), (12, 16), (16, 36)]
    size = sum(n * m for n, m in layers)
    assert count_flops(monkeypatch, _step_products(layers, 8, CPU)) == 8 * (3 * size - 36 * 16)
    encoder, decoder = (sum(n * m for n, m in _linear_sizes(part)) for part in (vae.encoder, vae.decoder))
    assert count_flops(monkeypatch, _iwae_products(vae, TINY, CPU)) == 3 * encoder + 60 * decoder

def test_turns_are_alternating_and_follow_an_untimed_call():
    order = []
    contenders = {name: _Contender(lambda name=name: order.append(name)) for name in "ab"}
    times = _take_turns(contenders, rounds=2, seconds=1e-9)
    assert "".join(order) == "ab" + "ab" + "aabb" + "bbaa" and [len(t) for t in times.values()] == [2, 2]

def test_times_are_milliseconds_a_unit(monkeypatch):
    "By a clock that only the contenders push."
    now = [0.]
    def nap(seconds): now[0] += seconds
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    times = _take_turns({"nap": _Contender(lambda: nap(0.02), 4), "long": _Contender(lambda: nap(0.5))}, rounds=3, seconds=0.1)
    assert times == {"nap": [pytest.approx(5.)] * 3, "long": [pytest.approx(500.)] * 3}

def test_a_ratio_is_paired_and_its_interval_holds_the_median():
    under = [1., 2., 4., 8., 16.]
    assert ratio([3 * t for t in under], under) == _Ratio(3, 3, 3)
    r = ratio([1., 2., 3., 4., 100.], [1.] * 5)
    assert r.low <= r.median == 3 <= r.high and r.high == 100

def test_targets_name_contenders_that_exist(x):
    known = {"step": {*_step_contenders(TINY, x), "pythae"}, "iwae": {*_iwae_contenders(TINY, x), "pythae"}, "posterior": {*METHODS}}
    assert set(known) == set(_GROUPS)
    for t in _TARGETS: assert {t.over, t.under} <= known[t.group]

def test_targets_are_judged_from_the_numbers():
    times = lambda **t: {k.replace("_", " "): [v, v] for k, v in t.items()}
    groups = {"step": times(vae=1., gpvae=1.1, plain_eager=1.6, matrix_products=0.6, refit_with_dreams=1.2), "iwae": times(vae=1., pythae=5., matrix_products=0.7), "posterior": times(vae=1., gpvae=1.2)}
    assert list(_targets_table({"groups": groups})["met"]) == ["yes", "no", "yes", "yes", "yes", "no", "no"]
    assert [_TARGETS[0].met(_Ratio((low + high) / 2, low, high)) for low, high in ((1.5, 2.), (1.4, 2.), (1.1, 1.4))] == ["yes", "undecided", "no"]
    assert [_TARGETS[2].met(_Ratio((low + high) / 2, low, high)) for low, high in ((1., 1.15), (1.1, 1.2), (1.2, 1.3))] == ["yes", "undecided", "no"]
    assert _target_row(_TARGETS[0], {})["met"] == _target_row(_TARGETS[0], {"step": times(vae=1.)})["measured"] == ""

def test_a_busy_machine_judges_nothing():
    groups = {"step": {"vae": [1.], "plain eager": [2.]}}
    verdict = lambda **machine: _targets_table({"groups": groups, "machine": machine})["met"].tolist()[:2]
    assert [verdict(others=v, cores=2, threads=2) for v in (_BUSY / 2, None, 2 * _BUSY)] == [["yes", ""], ["yes", ""], ["not judged", ""]]
    assert verdict(others=1., cores=2, threads=1) == ["yes", ""] # on the core that is theirs

def test_a_disturbed_round_is_made_again_as_long_as_there_are_tries(monkeypatch):
    "Others take a core in every second round: those are left out until the tries are used up."
    made, order = [0], []
    def others(self, before):
        made[0] += 1
        return 1. if made[0] % 2 else 0.
    monkeypatch.setattr(_Clocks, "others", others)
    watch = _Watch(room=0.5, tries=3)
    times = _take_turns({"a": _Contender(lambda: order.append("a"))}, rounds=5, seconds=1e-9, watch=watch)
    assert len(times["a"]) == 5 and made[0] == 8 and watch.seen == [0., 0., 0., 1., 0.]

def test_work_of_others_is_seen_and_ones_own_is_not():
    "By the counters of the system, where it has them: another process spins, and this one too."
    start = _Clocks.now()
    if start.every is None: pytest.skip("no /proc/stat")
    with subprocess.Popen([sys.executable, "-c", "import sys\nwhile True: pass"]) as other:
        while time.perf_counter() < start.wall + 1: pass
        end = _Clocks.now() # the other's time is not among that of children before it has ended
        other.kill()
    assert end.others(start) > 0.05 and end.own - start.own > 0.1

def test_a_result_survives_json_and_is_reported():
    result = benchmark(TINY, rounds=1, seconds=1e-4, threads=1)
    again = json.loads(json.dumps(result))
    assert set(again["groups"]) == set(_GROUPS) and set(again["groups"]["posterior"]) == set(METHODS) and "date" not in json.dumps(result)
    assert again["machine"]["torch"] == torch.__version__ and "profiles" not in again
    text = report(again)
    for name in ("plain eager", "matrix products", "times as fast as pythae", torch.__version__): assert name in text
    for group in _GROUPS: assert _times_table(again, group).loc["vae"].iloc[1] == "1.00 [1.00, 1.00]"

@pytest.fixture
def two_methods(monkeypatch):
    "The posteriors of two methods alone."
    monkeypatch.setitem(_GROUPS, "posterior", lambda sizes, x: benchmarks._posterior_contenders(sizes, x, ("vae", "gpvae")))

def test_profiles_are_named_by_group_and_contender(monkeypatch, two_methods):
    monkeypatch.setattr(benchmarks, "_PROFILED", ("gpvae", "no such"))
    profiles = benchmark(TINY, ["posterior"], rounds=1, seconds=1e-4, profiles=True)["profiles"]
    assert list(profiles) == ["posterior of gpvae"] and len(profiles["posterior of gpvae"]) == 13

def test_shares_of_a_profile_add_up():
    a = torch.rand(1000, 1000) # large, so that a pause of the machine leaves the product first
    rows = _profile(lambda: (a @ a).relu(), n=5, top=2)
    assert abs(sum(r["share"] for r in rows) - 1) < 0.01 and rows[0]["operator"] == "aten::mm" and rows[0]["calls"] == 1 and rows[-1]["operator"] == "all others"
    table = _profile_table({"product": rows, "other": [{"operator": "aten::mm", "share": 0.004, "calls": 1}, {"operator": "aten::add", "share": 0.996, "calls": 1}]})
    assert table.index[0] == "add" and "mm" in table.index and table.loc["add"].tolist() == ["", "99.6%"] and table.loc["mm", "other"] == "0.4%"

@pytest.mark.parametrize("argv, said", [(["--groups", "steps"], "did you mean 'step'"), (["--threads", "0"], "must be positive"), (["--rounds", "0"], "must be positive")])
def test_wrong_input_is_one_line(argv, said, capsys, monkeypatch):
    monkeypatch.setattr(benchmarks, "Sizes", lambda: TINY)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    assert benchmarks.main(argv) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]

def test_the_command_writes_what_it_prints(tmp_path, capsys, monkeypatch, two_methods):
    monkeypatch.setattr(benchmarks, "Sizes", lambda: TINY)
    threads = torch.get_num_threads()
    assert benchmarks.main(["--threads", "1", "--rounds", "2", "--seconds", "0.0001", "--groups", "posterior", "--out", str(tmp_path / "b.json")]) == 0
    assert report(read_json(tmp_path / "b.json")["benchmark"]) in capsys.readouterr().out
    torch.set_num_threads(threads)

def test_the_file_is_renewed_in_part(tmp_path, monkeypatch):
    path = tmp_path / "b.json"
    write_json(path, {"benchmark": {"rounds": 1}, "annealing": {"images": 2}})
    benchmarks._write_part(path, "annealing", {"images": 3})
    assert read_json(path) == {"benchmark": {"rounds": 1}, "annealing": {"images": 3}}
    path.write_text(path.read_text().replace("3", "4"))
    with pytest.raises(InputError, match="is damaged"): benchmarks._write_part(path, "annealing", {})

def test_what_was_before_is_kept_beside(tmp_path, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_json(old, {"benchmark": {"rounds": 1}})
    write_json(new, {"benchmark": {"rounds": 2}})
    assert benchmarks.main(["--before", str(old), "--out", str(new)]) == 0
    assert read_json(new) == {"benchmark": {"rounds": 2}, "before": {"rounds": 1}}
    assert benchmarks.main(["--before", str(old)]) == 2 and "--before needs --out" in capsys.readouterr().err

# --- a GPU's part -------------------------------------------------------------------------------------------------------------------

def test_an_epoch_is_timed_over_full_batches(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert _epoch_seconds(seen.append, 20, 8, CPU) > 0 and [len(index) for index in seen] == [8, 8] # the rest left out

def test_epochs_are_timed_recorded_and_eager(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = _epochs_on_gpu(TINY, CPU, n=20, repeats=2)
    assert {method: [*times] for method, times in found.items()} == {m: ["recorded", "eager"] for m in ("vae", "gpvae")}
    assert all(t > 0 for times in found.values() for t in times.values())

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available here")
def test_the_benchmark_runs_on_a_gpu():
    assert "s per epoch" in report(benchmark(TINY, ["step"], rounds=1, seconds=1e-3, threads=1, device=torch.device("cuda")))

@pytest.mark.skipif(not benchmarks._has_pythae(), reason="pythae is not installed: pip install gpvae[bench]")
def test_pythae_computes_the_same(vae, x):
    plain = _Plain(vae)
    theirs = benchmarks._pythae_model(plain, (1, TINY.side, TINY.side), TINY.z_dim)
    torch.manual_seed(1)
    ours = -vae.elbo(x).mean()
    torch.manual_seed(1)
    torch.testing.assert_close(theirs({"data": x}).loss, ours)
    with torch.no_grad(), torch.random.fork_rng(): assert abs(theirs.get_nll(x, 2000) - _plain_iwae(plain, x, 2000).mean()) < 0.1

def test_unknown_groups_are_refused():
    with pytest.raises(InputError, match="group 'iwea' is unknown"): benchmark(TINY, ["iwea"])

# --- one long job ------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    spec = RunSpec("digits", "vae", z_dim=2, settings=(("epochs", 1), ("hidden", (8,)), ("n_test", 5)))
    return run(spec, tmp_path_factory.mktemp("runs"), "cpu", bar=False).folder

BRIEF = AISConfig(temperatures=10, chains=3)

def test_the_job_is_that_of_one_call_however_it_is_shared_out(finished):
    spec, data = run_images(finished)
    splits = prepare_splits(data, spec.binarisation)
    direct = ais(load_model(finished), splits.test[:5], BRIEF, splits.eval_binarisation)
    result = json.loads(json.dumps(annealing(finished, 5, BRIEF, 1, bar=False)))
    torch.testing.assert_close(torch.tensor(result["log_px"]).double(), direct.log_px, atol=0.01, rtol=0)
    assert result["jobs"] == 1 and 0 < result["products"] < 1 and result["gap_log_px"] == []
    assert f"log p(x) {direct.log_px.mean():.1f}" in _annealing_report(result)

def test_every_row_of_the_job_is_counted(finished, monkeypatch):
    seen, model = [], load_model(finished)
    model.decoder.register_forward_hook(lambda module, args, out: seen.append(out[..., 0].numel()))
    spec, data = run_images(finished)
    splits = prepare_splits(data, spec.binarisation)
    ais(model, splits.test[:5], BRIEF, splits.eval_binarisation)
    assert sum(seen) == 5 * BRIEF.rows()

def test_a_job_that_cannot_be(finished, tmp_path, capsys):
    with pytest.raises(InputError, match="^images is 2 and jobs 3: at least two images, and one per process$"): annealing(finished, 2, BRIEF, 3)
    with pytest.raises(InputError, match="^images is 9999 or more: the test split has [0-9]+$"): annealing(finished, 9999, BRIEF, 1, bar=False)
    assert benchmarks.main(["--annealing", str(tmp_path / "none"), "--jobs", "1", "--threads", "1"]) == 2
    assert "holds no finished run" in capsys.readouterr().err
