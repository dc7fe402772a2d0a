"""The GP encoder in other people's training loops: mixed precision, averages of weights, copies, compilers,
several processes."""
import copy
import importlib.util
import io
import subprocess
import sys

import pytest
import torch
from torch import nn

from gpvae.data import to_float
from gpvae.encoders.gp import GPEncoder
from gpvae.evaluation.iwae import evaluate
from gpvae.likelihoods import Bernoulli
from gpvae.networks import mlp_decoder, mlp_trunk
from gpvae.training import TrainConfig, train, validation_bound
from gpvae.vae import VAE
from toys import binary_images, seeded

SHAPE = (1, 4, 4)
OPTIONS = [{}, {"covariance": "full"}, {"covariance": "none"}, {"features": "layernorm"},
           {"own_features": True}]

def encoder_of(**options):
    torch.manual_seed(0)
    return GPEncoder(mlp_trunk(SHAPE, (8, 6)), 6, 2, **options)

def model_of(**options): return VAE(encoder_of(**options), mlp_decoder(2, SHAPE, (8,)), Bernoulli())

def images(n, seed=1): return binary_images(n, SHAPE, seed, torch.float32)

def step(model, x, dtype=None):
    "One step of a user's loop, under autocast if a type is named."
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        q = model.encoder(x)
        z, _ = q.rsample_and_log_prob(2)
        loss = (
            q.kl() - model.likelihood.log_px_z(model.decoder(z), x.flatten(1)).mean(0)
        ).mean() + model.encoder.weight_kl() / 100
    loss.backward()
    optimizer.step()
    return loss.item()

@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(options, dtype):
    model, plain = model_of(**options).train(), model_of(**options).train()
    for seed in range(5):
        torch.manual_seed(seed)
        loss = step(model, images(32, seed), dtype)
        torch.manual_seed(seed)
        other = step(plain, images(32, seed))
        assert abs(loss - other) < 0.1 * abs(other)
    with torch.autocast("cpu", dtype), torch.no_grad():
        doubt = model.eval().encoder.uncertainty(images(8))
    assert all(part.isfinite().all() for part in doubt)
    assert all(p.dtype == torch.float32 for p in (*model.parameters(), *model.buffers()))

def test_an_average_of_weights_is_obeyed():
    "Running estimates that are edited in place, or handed over in a call, are those that count."
    a, b, x = encoder_of().train(), encoder_of().train(), images(8)
    for seed in range(5):
        a(images(32, seed))
        b(3 * images(32, seed + 9))
    averaged = {k: (v + b.state_dict()[k]) / 2 for k, v in a.state_dict().items()}
    edited = copy.deepcopy(a)
    for k, v in edited.state_dict().items():
        v.copy_(averaged[k])
    loaded = encoder_of()
    loaded.load_state_dict(averaged)
    called = torch.func.functional_call(a.eval(), averaged, (x,))
    for q in (edited.eval()(x), called):
        torch.testing.assert_close(q.log_sigma, loaded.eval()(x).log_sigma)
    assert (a(x).log_sigma - loaded(x).log_sigma).abs().max() > 1e-3

def test_swa_utils_average_it():
    model = encoder_of().train()
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    for seed in range(3):
        model(images(32, seed))
        average.update_parameters(model)
    assert average.module.features.mean.isfinite().all() and average.eval()(images(4)).mu.shape == (4, 2)

def test_copies_and_pickles():
    encoder, x = encoder_of().train(), images(8)
    encoder(images(32))
    copied, buffer = copy.deepcopy(encoder), io.BytesIO()
    torch.save(encoder, buffer)
    buffer.seek(0)
    for other in (copied, torch.load(buffer, weights_only=False)):
        assert torch.equal(other.eval()(x).mu, encoder.eval()(x).mu)
    copied.train()(3 * images(32, 5))
    assert not torch.equal(copied.features.mean, encoder.features.mean)

COMPILED = """
import copy, torch
from gpvae.encoders.gp import GPEncoder
from gpvae.networks import mlp_trunk
torch.manual_seed(0)
encoder, x = GPEncoder(mlp_trunk((1, 4, 4), (8, 6)), 6, 2).train(), torch.rand(8, 1, 4, 4)
encoder(torch.rand(32, 1, 4, 4))
for training in (True, False):
    other = copy.deepcopy(encoder).train(training)
    compiled = torch.compile(encoder.train(training), backend="aot_eager")
    torch.manual_seed(3)
    q = compiled(x)
    torch.manual_seed(3)
    torch.testing.assert_close(q.log_sigma, other(x).log_sigma)
    torch.testing.assert_close(encoder.features.mean, other.features.mean)
print("the same")
"""

def test_compiled():
    "In a process without the checks of shapes, which the compiler cannot see through."
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.stdout.strip() == "the same", done.stderr

def test_exported():
    class Answers(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, x):
            q = self.encoder(x)
            return q.mu, q.log_sigma
    answers, x = Answers(encoder_of().eval()), images(8)
    for a, b in zip(torch.export.export(answers, (x,)).module()(x), answers(x)):
        torch.testing.assert_close(a, b)

def test_distributed(tmp_path):
    import torch.distributed as dist
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(encoder_of().train())
        q = wrapped(images(8))
        (q.kl().mean() + wrapped.module.weight_kl() / 8).backward()
        assert all(p.grad is not None for p in wrapped.module.trunk.parameters())
    finally:
        dist.destroy_process_group()

def fitted_by_lightning(precision, folder):
    "A model after ten epochs of Lightning's own trainer, and the losses of its steps."
    from gpvae import vision # noqa: F401, mends torchvision beside a torch without CUDA
    import lightning
    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.losses = model_of(), []

        def training_step(self, batch, _):
            loss = -self.model.elbo(batch[0], 2).mean() + self.model.weight_kl_per_image(256)
            self.losses.append((loss.item(), torch.is_autocast_enabled("cpu")))
            return loss

        def configure_optimizers(self): return torch.optim.Adam(self.parameters(), 1e-2)
    torch.manual_seed(0)
    lit, x = Lit(), images(4).repeat(64, 1, 1, 1)  # four images, so that there is something to learn
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), 64, generator=seeded(),
                                         shuffle=True)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
                          False)
    lightning.Trainer(max_epochs=10, accelerator="cpu", precision=precision, default_root_dir=folder,
                      **quiet).fit(lit, loader)
    return lit.model, lit.losses

@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("lightning") is None,
                    reason="lightning is not installed: pip install gpvae[bench]")
def test_lightnings_own_mixed_precision(tmp_path):
    (mixed, losses), (plain, others) = (fitted_by_lightning(p, tmp_path) for p in ("bf16-mixed", "32-true"))
    assert {cast for _, cast in losses} == {True} and {cast for _, cast in others} == {False}
    assert len(losses) == 40 and losses[-1][0] < losses[0][0] - 0.5
    for (a, _), (b, _) in zip(losses, others):
        assert abs(a - b) < 0.1 * abs(b)
    assert all(p.dtype == torch.float32 and p.isfinite().all()
               for p in (*mixed.parameters(), *mixed.buffers()))
    x = (255 * images(50, 2)).byte()
    a, b = (evaluate(m, x, 20).elbo.mean() for m in (mixed, plain))
    assert abs(a - b) < 0.1 * abs(b)

def test_judging_a_model_that_trains_leaves_it_training():
    model, x = model_of().train(), (255 * images(20)).byte()
    before = copy.deepcopy(model.state_dict())
    evaluate(model, x, k=3)
    validation_bound(model, x, "static")
    assert all(part.training for part in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

def test_floats_by_name_are_the_pixels_that_bytes_are():
    x, model = (255 * images(20)).byte(), model_of()
    floats = to_float(x, "none")
    assert torch.equal(evaluate(model, x, 5, "none").iwae, evaluate(model, floats, 5, "floats").iwae)
    trained = [train(model_of(), data, data, how, TrainConfig(epochs=1), bar=False).history[0]["elbo"]
               for data, how in ((x, "none"), (floats, "floats"))]
    assert trained[0] == trained[1]
