"""One stepper behind training: what changes from step to step reaches a recorded step, which agrees with the
eager one to rounding; where steps cannot be recorded it says why."""
import contextlib
import dataclasses
import functools

import pytest
import torch

from gpvae.study.config import RunSpec
from gpvae.study.methods import METHODS
from models import build_model
from gpvae.stepper import RecordedStep, Stepper, StepInputs
from gpvae.training import train
from gpvae.train_step import TrainConfig, adam
from toys import seeded

SHAPE = (1, 6, 6)
CASES = ("vae", "gpvae", "rme-3", "sa-2", "me-3", "iaf-2", "gpvae+sa-1", "vae-dropout")
WAITING = {"vlae"} # a Cholesky factorisation waits to see whether it succeeded
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available here")
CONFIG = TrainConfig(epochs=3, batch_size=8, lr=1e-3, lr_warmup=0, kl_warmup=2, noise_warmup=2,
                     milestones=(1, 2), weight_decay=0.2, checkpoint_seconds=0.)

def model_of(method, device="cpu"):
    settings = (("hidden", (16, 12)), ("network", "mlp"))
    spec = RunSpec(method=method, z_dim=2, likelihood="bernoulli", settings=settings)
    return build_model(spec, SHAPE).to(device)

def pixels(n=36, device="cpu"):
    return torch.randint(256, (n, *SHAPE), generator=seeded(), dtype=torch.uint8).to(device)

def numbers(model):
    return torch.cat([v.detach().flatten().float().cpu() for v in model.state_dict().values()])

def walk(method, recorded, device="cpu", config=CONFIG, epochs=5, change=None, binarisation="stochastic"):
    """Some epochs with other β, step size and randomness at every step, the last batch smaller: the terms of
    all steps, and the model."""
    model, x, terms = model_of(method, device).train(), pixels(device=device), []
    step = Stepper(model, adam(model, config), x, binarisation, config, recorded=recorded)
    for epoch in range(epochs):
        step.seed(epoch)
        for i, index in enumerate(torch.randperm(len(x)).to(device).split(8)):
            asked = dict(beta=0.1 * (i + epoch), lr=1e-3 / (1 + i), noise_scale=0.1 + 0.05 * (i + epoch))
            # a step that is not the first of its size
            if change and (epoch, i) == (epochs - 1, 1):
                asked |= change
            terms.append(step(index, **asked).clone().cpu())
    return torch.stack(terms), model, step

def assert_same(a, b, rtol=1e-4, atol=1e-5):
    torch.testing.assert_close(a[0], b[0], rtol=rtol, atol=10 * atol)
    torch.testing.assert_close(numbers(a[1]), numbers(b[1]), rtol=rtol, atol=atol)

# --- on any machine -------------------------------------------------------------------------------

@pytest.mark.parametrize("method", CASES)
def test_a_step_from_written_inputs_is_the_step_from_numbers(method):
    assert_same(walk(method, True), walk(method, False))

@pytest.mark.parametrize("change", [dict(beta=30.), dict(lr=0.1), dict(noise_scale=5.)])
def test_every_input_reaches_a_step_that_is_written(change):
    "Another number at a later step is another result, and the one that the eager step has."
    usual, written = walk("gpvae", True), walk("gpvae", True, change=change)
    eager = walk("gpvae", False, change=change)
    assert (numbers(usual[1]) - numbers(written[1])).abs().max() > 2e-4
    assert_same(written, eager)

def test_the_images_of_each_step_are_those_that_are_asked_for(monkeypatch):
    seen = []
    original = torch.Tensor.__getitem__
    x = torch.arange(36).reshape(-1, 1, 1, 1).expand(-1, *SHAPE).byte().contiguous()
    model = model_of("vae").train()
    monkeypatch.setattr("gpvae.stepper.gather",
                        lambda x, index, *rest: seen.append(original(x, index)[:, 0, 0, 0].tolist())
                        or original(x, index) / 255)
    step = Stepper(model, adam(model, CONFIG), x, "none", CONFIG, recorded=True)
    for start in (0, 7, 20):
        step(torch.arange(start, start + 8))
    assert seen == [list(range(start, start + 8)) for start in (0, 7, 20)]

def test_a_graph_reads_nothing_but_tensors(monkeypatch):
    "What a recorded step is handed are the same tensors every time: a number would be frozen into the graph."
    seen, original = [], Stepper.make_step
    def step(self, index, inputs, config):
        seen.append((index, *inputs))
        return original(self, index, inputs, config)
    monkeypatch.setattr(Stepper, "make_step", step)
    walk("gpvae", True, epochs=2)
    assert all(isinstance(value, torch.Tensor) for call in seen for value in call)
    # one set for full batches, one for the smaller one
    assert len({tuple(value.data_ptr() for value in call) for call in seen}) == 2

@pytest.mark.parametrize("share", [0.5, 0.])
def test_dreams_begin_in_a_step_of_their_own(share):
    config = dataclasses.replace(CONFIG, dreams=0.5)
    assert_same(walk("gpvae", True, config=config, change=dict(dreams=share)),
                walk("gpvae", False, config=config, change=dict(dreams=share)))

def trained(monkeypatch, recorded, config=CONFIG, path=None, method="gpvae", device="cpu"):
    "A whole training whose steps are written, or not."
    torch.manual_seed(7)
    model, x = model_of(method, device), pixels(device=device)
    with monkeypatch.context() as m:
        m.setattr("gpvae.training.Stepper", functools.partial(Stepper, recorded=recorded))
        return model, train(model, x, 255 * (x[:9] > 127).byte(), "stochastic", config, path, bar=False)

@pytest.mark.parametrize("method", ["gpvae", "rme-2"])
def test_a_training_of_written_steps_is_the_training(monkeypatch, method):
    (a, ta), (b, tb) = trained(monkeypatch, True, method=method), trained(monkeypatch, False, method=method)
    torch.testing.assert_close(numbers(a), numbers(b), rtol=1e-3, atol=1e-4)
    for one, other in zip(ta.history, tb.history):
        assert one["valid_elbo"] == pytest.approx(other["valid_elbo"], rel=1e-4)

def test_a_training_of_written_steps_resumes_with_the_same_bits(monkeypatch, tmp_path):
    whole, path = trained(monkeypatch, True)[0], tmp_path / "c.safetensors"
    trained(monkeypatch, True, dataclasses.replace(CONFIG, epochs=1), path)
    assert torch.equal(numbers(trained(monkeypatch, True, path=path)[0]), numbers(whole))

# A graph, played through on the CPU: it remembers nothing, so this proves the order of what is done, and that
# what was begun is put back.

class FakeGraph:
    def __init__(self): self.registered, self.replays = [], 0
    def register_generator_state(self, generator): self.registered.append(generator)
    def replay(self): self.replays += 1

class FakeStream:
    def wait_stream(self, other): pass

@pytest.fixture
def fake_cuda(monkeypatch):
    "The calls that a CUDA device answers, and the mode in which waiting is an error."
    context, mode, waited = (lambda *args: contextlib.nullcontext()), ["default"], []
    names = dict(Stream=FakeStream, CUDAGraph=FakeGraph, stream=context, graph=context,
                 current_stream=FakeStream, get_sync_debug_mode=lambda: mode[0],
                 set_sync_debug_mode=lambda value: mode.__setitem__(0, value),
                 get_rng_state=lambda device: torch.get_rng_state(),
                 set_rng_state=lambda state, device: torch.set_rng_state(state),
                 synchronize=lambda device: waited.append(mode[0]))
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    mode.append(waited) # in which mode the host waited for the device
    return mode

def test_a_graph_is_recorded_once_after_the_warm_up(fake_cuda):
    terms, _, step = walk("gpvae", True)
    record = next(iter(step.records.values()))
    record.cuda, record.calls = True, 0
    index = torch.arange(8)
    for call in range(1, 7):
        assert step(index).isfinite().all()
        assert (record.graph is None) == (call <= record.warmup)
    assert record.graph.replays == 3 and record.graph.registered == [step.pixels]
    assert all(not group["capturable"] for group in step.optimizer.param_groups)

def test_a_step_that_cannot_be_recorded_is_eager_from_then_on_and_says_why(fake_cuda, monkeypatch):
    "Nothing is computed while recording fails: the steps are those of an eager run."
    @contextlib.contextmanager
    def fails(graph):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")
        yield
    monkeypatch.setattr(torch.cuda, "graph", fails)
    results = []
    for recorded in (True, False):
        model = model_of("gpvae").train()
        step = Stepper(model, adam(model, CONFIG), pixels(), "stochastic", CONFIG, recorded=recorded)
        step.seed(0)
        terms = []
        for call in range(6):
            try:
                terms.append(step(torch.arange(8)))
            except RuntimeError as e:
                raise AssertionError("a failed recording ended the training") from e
            for record in step.records.values():
                record.cuda = True
        results.append((torch.stack(terms), numbers(model)))
        assert step.why == ("the step cannot be recorded (operation not permitted when stream is capturing)"
                            if recorded else "")
        assert not step.recorded
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)

class Waits(torch.nn.Module):
    "A trunk that looks at a number, after noise was drawn."
    def __init__(self, trunk, mode):
        super().__init__()
        self.trunk, self.mode = trunk, mode

    def forward(self, x):
        y = self.trunk(x + 0 * torch.randn(x.shape))
        if self.mode[0] == "error":
            raise RuntimeError("called a synchronizing CUDA operation\nand more")
        return y

def test_a_step_that_waits_is_eager_from_the_start_and_says_why(fake_cuda):
    results = []
    for first in (True, False):
        model, x = model_of("gpvae").train(), pixels()
        model.encoder.trunk = Waits(model.encoder.trunk, fake_cuda)
        step = Stepper(model, adam(model, CONFIG), x, "stochastic", CONFIG, recorded=first)
        step.seed(0)
        plain = lambda index, inputs: step.make_step(index, inputs, CONFIG)
        index, inputs = torch.arange(8), (0.5, 1e-2, 1.)
        terms = step.first_step(RecordedStep(plain, index, step.pixels), plain, index,
                                StepInputs(*inputs)) if first else step(index, *inputs)
        results.append((terms, numbers(model)))
        assert step.why == ("the host waits for the device (called a synchronizing CUDA operation)" if first
                            else "")
        assert not step.recorded
    for a, b in zip(*results):
        assert torch.equal(a, b)
    # waited once, before what was begun is put back, and where that is allowed
    assert fake_cuda == ["default", ["default"]]

def test_the_reason_is_shown(monkeypatch, capsys):
    class Slow(Stepper):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.why = "a reason"
    monkeypatch.setattr("gpvae.training.Stepper", Slow)
    x = pixels()
    train(model_of("vae"), x, 255 * (x[:9] > 127).byte(), "stochastic", dataclasses.replace(CONFIG, epochs=1),
          label="slow")
    assert "eager=a reason" in capsys.readouterr().err

# --- fewer digits ---------------------------------------------------------------------------------

def test_fewer_digits_are_used_where_they_are_asked_for_and_only_there():
    full = walk("gpvae", False)
    rough = walk("gpvae", False, config=dataclasses.replace(CONFIG, precision="bfloat16"))
    assert all(v.dtype == torch.float32 for v in rough[1].state_dict().values())
    assert rough[0].dtype == torch.float32
    assert not torch.equal(full[0], rough[0])
    torch.testing.assert_close(rough[0][:, :2], full[0][:, :2], rtol=0.05, atol=0.3)
    again = walk("gpvae", False)
    assert torch.equal(again[0], full[0]) # nothing of it is left behind

def test_tf32_is_set_within_a_step_and_taken_back(monkeypatch):
    seen, parts = [], (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [part.fp32_precision for part in parts]
    monkeypatch.setattr("gpvae.train_step.clip_gradients",
                        lambda model, max_norm: seen.append([part.fp32_precision for part in parts])
                        or torch.zeros(()))
    walk("vae", False, config=dataclasses.replace(CONFIG, precision="tf32"), epochs=1)
    assert seen[0] == ["tf32", "tf32"] and [part.fp32_precision for part in parts] == before

# --- on a GPU -------------------------------------------------------------------------------------

@cuda
@pytest.mark.parametrize("method", [m for m in METHODS if m != "svi"])
def test_the_recorded_step_is_the_eager_one_on_a_gpu(method):
    recorded, eager = walk(method, True, "cuda", epochs=8), walk(method, False, "cuda", epochs=8)
    assert_same(recorded, eager, rtol=2e-3, atol=2e-4)
    if method in WAITING:
        assert recorded[2].why
    else:
        assert not recorded[2].why, recorded[2].why
        # the smaller batch too
        assert all(record.graph is not None for record in recorded[2].records.values())

@cuda
@pytest.mark.parametrize("binarisation", ["static", "stochastic", "none"])
def test_pixels_are_drawn_alike_on_a_gpu(binarisation):
    assert_same(*(walk("vae", recorded, "cuda", binarisation=binarisation) for recorded in (True, False)),
                rtol=2e-3, atol=2e-4)

@cuda
@pytest.mark.parametrize("change", [dict(beta=30.), dict(lr=0.1), dict(noise_scale=5.)])
def test_every_input_reaches_a_graph(change):
    usual, *others = (walk("gpvae", recorded, "cuda", epochs=8, change=asked)
                      for recorded, asked in ((True, None), (True, change), (False, change)))
    changed, eager = others
    assert (numbers(usual[1]) - numbers(changed[1])).abs().max() > 2e-4
    assert_same(changed, eager, rtol=2e-3, atol=2e-4)

@cuda
def test_a_recorded_training_resumes_on_a_gpu(monkeypatch, tmp_path):
    config, path = dataclasses.replace(CONFIG, epochs=8), tmp_path / "c.safetensors"
    whole = trained(monkeypatch, True, config, device="cuda")[0]
    trained(monkeypatch, True, dataclasses.replace(config, epochs=3), path, device="cuda")
    assert torch.equal(numbers(trained(monkeypatch, True, config, path, device="cuda")[0]), numbers(whole))

@cuda
def test_a_step_that_waits_is_eager_on_a_gpu():
    model, x = model_of("vae", "cuda").train(), pixels(device="cuda")
    model.encoder.register_forward_hook(lambda module, args, q: q.mu.sum().item() and None)
    step = Stepper(model, adam(model, CONFIG), x, "stochastic", CONFIG)
    step.seed(0)
    for _ in range(6):
        assert step(torch.arange(8, device="cuda")).isfinite().all()
    assert step.why and not step.recorded and torch.cuda.get_sync_debug_mode() == 0

@cuda
def test_a_refit_with_dreams_is_recorded_on_a_gpu():
    results = []
    for recorded in (True, False):
        model = model_of("gpvae", "cuda").train()
        for part in (model.decoder, model.likelihood):
            part.requires_grad_(False)
        config = dataclasses.replace(CONFIG, dreams=0.5)
        step = Stepper(model, adam(model, config), pixels(device="cuda"), "static", config, recorded=recorded)
        step.seed(0)
        terms = torch.stack([step(torch.arange(i, i + 8, device="cuda")).clone().cpu() for i in range(20)])
        assert not step.why, step.why
        results.append((terms, model))
    assert_same(*results, rtol=2e-3, atol=2e-4)
