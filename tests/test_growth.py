"What grows with what, by counts that no slow machine changes: rows of the decoder at most linear in images, samples and temperatures, memory constant in samples and temperatures, calls of the store linear in its rows, and start-up that imports nothing it does not need."
import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gpvae.evaluation.likelihood import Estimator
from gpvae.study import estimators
from gpvae.study.estimators import _grown, _made_up, _sized
from gpvae.study.spec import RunSpec
from gpvae.study.store import Store, select

GROWING = {"IWAE": Estimator("posterior", 1000), "curvature": Estimator("newton", 100), "annealing": Estimator("posterior", 4, temperatures=5)}

@pytest.fixture(autouse=True)
def small(monkeypatch): monkeypatch.setattr(estimators, "_USUAL", {"images": 2, "latents": 8, "width": 32})

def rows(estimator, axis, value): # of the decoder
    counted = []
    model, x = _sized(axis, value)
    model.decoder.register_forward_hook(lambda module, args, out: counted.append(out[..., 0].numel()))
    _grown(estimator, axis, value)(model, x)
    return sum(counted)

def peak(call): # bytes of torch's own allocations, above what there was
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p: call()
    sizes = [e.nbytes() for e in sorted(p.profiler.kineto_results.events(), key=lambda e: e.start_ns()) if e.name() == "[memory]"]
    return max(torch.tensor(sizes).cumsum(0).max().item(), 0)

def of_axis(axis, small, large): return [(name, axis, small, large) for name, e in GROWING.items() if _grown(e, axis, 1)]

@pytest.mark.parametrize("name, axis, small, large", [*of_axis("images", 2, 8), *of_axis("samples", 300, 1200), *of_axis("temperatures", 5, 20)])
def test_rows_of_the_decoder_grow_at_most_linearly(name, axis, small, large):
    few, many = (rows(GROWING[name], axis, value) for value in (small, large))
    assert 0 < few < many <= few * large / small

@pytest.mark.parametrize("name, axis, small, large", [*of_axis("samples", 2000, 8000), *of_axis("temperatures", 5, 20)])
def test_memory_is_constant(name, axis, small, large):
    model, x = _sized("images", 2)
    few, many = (peak(lambda: _grown(GROWING[name], axis, value)(model, x)) for value in (small, large))
    assert 0 < many <= 1.02 * few

def test_the_peak_is_of_what_lives_at_once():
    def two(): return torch.ones(1000), torch.ones(1000)
    def one_after_the_other():
        for _ in range(2): torch.ones(1000)
    assert peak(two) >= 2 * peak(one_after_the_other) > 0

def calls(call): # of functions, Python's and others
    count = [0]
    def seen(frame, event, arg): count[0] += event in ("call", "c_call")
    sys.setprofile(seen)
    try: call()
    finally: sys.setprofile(None)
    return count[0]

def test_the_store_works_linearly_in_its_rows(tmp_path):
    "And finding the rows of given specifications calls nothing for each row."
    specs, found = [RunSpec("digits", "vae", 2, seed, "smoke", n_train=100) for seed in range(20)], {}
    for n in (1000, 4000):
        store, made = Store(tmp_path / str(n)), _made_up(n)
        def keep():
            with store._writing(): store._keep_rows("runs", made.tail(1).to_dict("records"))
        with store._writing(): store._keep_rows("runs", made.to_dict("records"))
        rows = store.runs()
        assert len(select(rows, specs)) == 20 and len(rows) == n
        found[n] = [calls(call) for call in (store.runs, keep, lambda: select(rows, specs))]
    read, kept, selected = (many / few for few, many in zip(found[1000], found[4000]))
    assert read < 4.1 and kept < 4.1 and selected < 1.1

def imported_by(code): # modules
    done = subprocess.run([sys.executable, "-c", f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint(*sys.modules)"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())

@pytest.mark.parametrize("command", ["run", "refit", "reproduce", "gap"])
def test_help_imports_the_standard_library_alone(command):
    found = imported_by(f"from gpvae.study.commands import {command}_command as c; c(['--help'])")
    ours = {"gpvae", "gpvae._modidx", "gpvae.study", "gpvae.study.commands", "gpvae.study.defaults"}
    assert {"gpvae.study.commands"} <= {m for m in found if m.split(".")[0] == "gpvae"} <= ours
    assert not {"torch", "numpy", "pandas", "snakemake"} & found and len(found) < 200

def test_the_encoder_imports_little_beside_torch():
    beyond = imported_by("import gpvae.encoders.gp") - imported_by("import torch, jaxtyping")
    assert {"gpvae.encoders.gp"} < beyond and len(beyond) < 20
    assert not {m for m in beyond if m.split(".")[0] in ("pandas", "torchvision", "matplotlib", "scipy", "sklearn", "IPython", "fastcore")}
