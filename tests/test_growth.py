"""What grows with what, by counts that no slow machine changes.

Rows of the decoder are at most linear in images, samples and temperatures, memory is constant in samples and
temperatures, and the store works linearly in its rows."""
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.evaluation.likelihood import Estimator
from gpvae.likelihoods import Bernoulli
from gpvae.networks import mlp_decoder, mlp_trunk
from gpvae.study.config import RunSpec
from gpvae.study.store import Store
from gpvae.study.studies import Study
from gpvae.vae import VAE

SHAPE = (1, 28, 28)
ESTIMATORS = {"IWAE": dict(proposal="posterior", samples=1000),
              "curvature": dict(proposal="newton", samples=100),
              "annealing": dict(proposal="posterior", samples=4, temperatures=5)}

def sized(images):
    "A model that nobody trained, and so many images."
    torch.manual_seed(0)
    model = VAE(AmortizedEncoder(mlp_trunk(SHAPE, (32,)), 32, 8), mlp_decoder(8, SHAPE, (32,)), Bernoulli())
    return model, (255 * (torch.rand(images, *SHAPE) < 0.13)).byte()

def call(name, axis, value):
    "An estimate in which one size is given."
    options = ESTIMATORS[name] | ({axis: value} if axis != "images" else {})
    model, x = sized(value if axis == "images" else 2)
    return Estimator(**options), model, x

def rows(name, axis, value):  # of the decoder
    estimator, model, x = call(name, axis, value)
    counted = []
    model.decoder.register_forward_hook(lambda module, args, out: counted.append(out[..., 0].numel()))
    estimator(model, x)
    return sum(counted)

def peak(work):  # bytes of torch's own allocations, above what there was
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        work()
    events = sorted(p.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(torch.tensor(sizes).cumsum(0).max().item(), 0)

def grown(axis, small, large):
    "The estimators that have a size."
    without = {"samples": ["annealing"], "temperatures": ["IWAE", "curvature"], "images": []}[axis]
    return [(name, axis, small, large) for name in ESTIMATORS if name not in without]

SIZES = [*grown("images", 2, 8), *grown("samples", 300, 1200), *grown("temperatures", 5, 20)]

@pytest.mark.parametrize("name, axis, small, large", SIZES)
def test_rows_of_the_decoder_grow_at_most_linearly(name, axis, small, large):
    few, many = rows(name, axis, small), rows(name, axis, large)
    assert 0 < few < many <= few * large / small

LARGE = [*grown("samples", 2000, 8000), *grown("temperatures", 5, 20)]

@pytest.mark.parametrize("name, axis, small, large", LARGE)
def test_memory_is_constant(name, axis, small, large):
    few, many = (peak(lambda: c[0](*c[1:])) for c in (call(name, axis, value) for value in (small, large)))
    assert 0 < many <= 1.02 * few

def calls(work):  # of functions, Python's and others
    count = 0

    def seen(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count

def test_the_store_works_linearly_in_its_rows(tmp_path):
    "And finding the rows of a study calls nothing for each row."
    specs = tuple(RunSpec("digits", "vae", 2, seed, "smoke") for seed in range(20))
    study, counts = Study("tried", "Tried", specs), {}
    for n in (1000, 4000):
        texts = [spec.text() for spec in specs] + [f"other {i}" for i in range(n - len(specs))]
        made = pd.DataFrame(dict(run=[f"{i:012x}" for i in range(n)], spec=texts, dataset="digits",
                                 method="vae", seed=np.arange(n), protocol=4, elbo=-90.))
        store = Store(tmp_path / str(n))

        def keep(table):
            with store.writing():
                store.keep_rows("runs", table.to_dict("records"))

        keep(made)
        assert len(study.results(store).rows) == 20 and len(store.table("runs")) == n
        works = (lambda: store.table("runs"), lambda: keep(made.tail(1)), lambda: study.results(store))
        counts[n] = [calls(work) for work in works]
    read, kept, selected = (many / few for few, many in zip(counts[1000], counts[4000]))
    assert read < 4.1 and kept < 4.1 and selected < 4.1

def test_the_encoder_imports_little_beside_torch():
    def imported(code):
        done = subprocess.run([sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
                              capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    beyond = imported("import gpvae.encoders.gp") - imported("import torch, jaxtyping")
    assert "gpvae.encoders.gp" in beyond and len(beyond) < 25
    heavy = ("pandas", "torchvision", "matplotlib", "scipy", "sklearn", "IPython", "fastcore")
    assert not {name for name in beyond if name.split(".")[0] in heavy}
