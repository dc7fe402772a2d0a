"""Training step, importance sampling and posterior: interleaved rounds in one process.

Rivals are a VAE of plain PyTorch, pythae where it is installed (`pip install -e '.[bench]'`), and the matrix products
alone. `python benchmarks/speed.py --out nbs/results/benchmarks.json` on a machine with nothing else running; the page
nbs/studies/benchmarks.ipynb shows what the file says."""

import argparse
import copy
import importlib.util
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

for variable, value in dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE").items():
    os.environ.setdefault(variable, value)

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from gpvae.data import load, prepare_splits, to_float
from gpvae.evaluation.iwae import estimate_batch
from gpvae.evaluation.timing import training_step
from gpvae.files import commit, pick_device, write_json
from gpvae.statistics import bootstrap
from gpvae.study.config import RunConfig, RunSpec, build_model, refit_of, resolve
from gpvae.study.methods import METHODS
from gpvae.vae import VAE, default_rows


@dataclass(frozen=True)
class Sizes:
    "What is timed."

    hidden: tuple[int, ...] = (500, 500)  # widths of trunk and decoder
    z_dim: int = 20  # latent dimensions
    batch: int = 128  # images of a training step, and of a posterior
    images: int = 64  # images of an importance-sampling call
    k: int = 500  # importance samples per image


class Contender(NamedTuple):
    "Something to time."

    call: Callable[[], object]
    units: int = 1  # steps, images or batches per call; times are per unit


def config_of(method: str, sizes: Sizes, dataset: str, refit: bool = False) -> RunConfig:
    "The run whose model and optimiser are timed."
    spec = RunSpec(
        dataset, method, sizes.z_dim, 0, "cpu", "bernoulli", settings=dict(hidden=sizes.hidden, network="mlp")
    )
    return resolve(refit_of(spec) if refit else spec)


def model_of(config: RunConfig, x: Tensor) -> VAE:
    "An untrained model as a run makes it, with the running moments of its features started."
    model = build_model(config).to(x.device).train()
    with torch.random.fork_rng(devices=[]):
        model.posterior(x)
    return model


class PlainVAE(nn.Module):
    "A VAE written the usual way, with the weights of another."

    def __init__(self, model: VAE):
        super().__init__()
        model = copy.deepcopy(model)
        self.encoder, self.decoder = plain_layers(model.encoder.trunk), plain_layers(model.decoder)
        self.mu, self.log_var = model.encoder.b, model.encoder.c
        with torch.no_grad():  # log variance = 2 · log standard deviation
            for p in self.log_var.parameters():
                p *= 2

    def encode(self, x):
        h = self.encoder(x)
        return self.mu(h), self.log_var(h)

    def loss(self, x):
        mu, log_var = self.encode(x)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)
        bce = F.binary_cross_entropy_with_logits(self.decoder(z), x.flatten(1), reduction="none").sum(1)
        kl = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp(), dim=1)
        return (bce + kl).mean()


def plain_layers(layers: nn.Sequential) -> nn.Sequential:
    "The same layers, of PyTorch's own classes."

    def plain(layer):
        if not isinstance(layer, nn.Linear):
            return layer
        other = nn.Linear(layer.in_features, layer.out_features).to(layer.weight)
        other.load_state_dict(layer.state_dict())
        return other

    return nn.Sequential(*map(plain, layers))


def plain_step(model: PlainVAE, x: Tensor) -> Callable[[], float]:
    "One step of the plain loop."
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step():
        loss = model.loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


@torch.no_grad()
def plain_iwae(model: PlainVAE, x: Tensor, k: int, chunk: int = 50) -> Tensor:
    "log (1/k) Σ w of each image [B], encoding once, with `torch.distributions` and `chunk` samples at a time."
    mu, log_var = model.encode(x)
    q = torch.distributions.Normal(mu, torch.exp(0.5 * log_var))
    p = torch.distributions.Normal(torch.zeros_like(mu), 1.0)
    log_w = []
    for start in range(0, k, chunk):
        z = q.sample((min(chunk, k - start),))
        logits = model.decoder(z)
        bce = F.binary_cross_entropy_with_logits(
            logits, x.flatten(1).expand_as(logits), reduction="none"
        ).sum(-1)
        log_w.append(p.log_prob(z).sum(-1) - q.log_prob(z).sum(-1) - bce)
    return torch.logsumexp(torch.cat(log_w), 0) - math.log(k)


def has_pythae() -> bool:
    "Is pythae installed?"
    return importlib.util.find_spec("pythae") is not None


def pythae_model(plain: PlainVAE, x_shape: tuple[int, ...], z_dim: int) -> nn.Module:
    "pythae's VAE with the encoder and the decoder of another model."
    from pythae.models import VAE as PythaeVAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    parts = copy.deepcopy(plain)

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.parts = parts

        def forward(self, x):
            mu, log_var = self.parts.encode(x)
            return ModelOutput(embedding=mu, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.net = parts.decoder

        def forward(self, z):
            return ModelOutput(reconstruction=torch.sigmoid(self.net(z)).reshape(-1, *x_shape))

    config = VAEConfig(input_dim=x_shape, latent_dim=z_dim, reconstruction_loss="bce")
    return PythaeVAE(config, Encoder(), Decoder())


def pythae_step(model: nn.Module, x: Tensor) -> Callable[[], float]:
    "One step of pythae's trainer, without its files and progress bars."
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

    config = BaseTrainerConfig(
        per_device_train_batch_size=len(x), learning_rate=1e-3, no_cuda=x.device.type == "cpu"
    )
    logging.disable(logging.INFO)
    trainer = BaseTrainer(model, BaseDataset(x.cpu(), torch.zeros(len(x))), training_config=config)
    logging.disable(logging.NOTSET)
    trainer.set_optimizer()
    trainer.callback_handler = CallbackHandler([TrainingCallback()], model)
    inputs = {"data": x}

    def step():
        trainer.model.train()
        output = trainer.model(inputs, epoch=1, dataset_size=len(x), uses_ddp=False)
        trainer._optimizers_step(output)
        return output.loss.item()

    return step


def linear_sizes(model: nn.Module) -> list[tuple[int, int]]:
    "(inputs, outputs) of the linear layers."
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


def products(
    layers: Sequence[tuple[int, int]], rows: int, device: torch.device, backward: bool = False
) -> Callable[[], None]:
    "The matrix products of the layers alone: x Wᵀ; backward also dyᵀ x and, but for the first layer, dy W."

    def new(*shape):
        return torch.rand(*shape, device=device)

    parts = [(new(rows, n), new(m, n), new(rows, m)) for n, m in layers]

    def call():
        for x, W, y in parts:
            torch.mm(x, W.T, out=y)
        for i, (x, W, y) in enumerate(parts if backward else ()):
            torch.mm(y.T, x)
            if i:
                torch.mm(y, W)

    return call


def step_contenders(sizes: Sizes, x: Tensor, dataset: str) -> dict[str, Contender]:
    "One training step on a batch; the unit is a step."
    batch = x[: sizes.batch]
    found = {}
    for method in ("vae", "gpvae"):
        config = config_of(method, sizes, dataset)
        found[method] = Contender(training_step(model_of(config, batch), batch, config.train, 50_000))
    config = config_of("vae", sizes, dataset, refit=True)
    model = model_of(config, batch)
    for part in (model.decoder, model.likelihood):
        part.requires_grad_(False)
    found["refit with dreams"] = Contender(
        training_step(model, batch[: len(batch) // 2], config.train, 50_000)
    )
    vae = model_of(config_of("vae", sizes, dataset), batch)
    found["plain eager"] = Contender(plain_step(PlainVAE(vae), batch))
    if has_pythae():
        theirs = pythae_model(PlainVAE(vae), tuple(x.shape[1:]), sizes.z_dim)
        found["pythae"] = Contender(pythae_step(theirs, batch))
    found["matrix products"] = Contender(products(linear_sizes(vae), len(batch), x.device, backward=True))
    return found


def iwae_contenders(sizes: Sizes, x: Tensor, dataset: str) -> dict[str, Contender]:
    "IWAE-k of a batch of images; the unit is an image."
    x = x[: sizes.images]
    vae = model_of(config_of("vae", sizes, dataset), x).eval()
    plain, rows = PlainVAE(vae), default_rows(x.device)
    encode = products(linear_sizes(vae.encoder), len(x), x.device)
    decode = products(linear_sizes(vae.decoder), min(rows, len(x) * sizes.k), x.device)

    def products_alone():
        encode()
        for _ in range(math.ceil(len(x) * sizes.k / rows)):
            decode()

    calls = {
        "vae": torch.inference_mode()(lambda: estimate_batch(vae, x, sizes.k)),
        "encode-once eager": lambda: plain_iwae(plain, x, sizes.k),
        "matrix products": products_alone,
    }
    if has_pythae():
        theirs = pythae_model(plain, tuple(x.shape[1:]), sizes.z_dim).to(x.device)
        calls["pythae"] = torch.no_grad()(lambda: theirs.get_nll(x, n_samples=sizes.k))
    return {name: Contender(call, len(x)) for name, call in calls.items()}


def posterior_contenders(sizes: Sizes, x: Tensor, dataset: str) -> dict[str, Contender]:
    "The posterior of a batch and one sample of it, of every method; the unit is a batch."
    found, batch = {}, x[: sizes.batch]
    for method in METHODS:
        model = model_of(config_of(method, sizes, dataset), batch).eval()
        quiet = torch.no_grad() if model.encoder.needs_grad else torch.inference_mode()
        found[method] = Contender(quiet(lambda model=model: model.posterior(batch).rsample_and_log_prob()))
    return found


GROUPS = {"step": step_contenders, "iwae": iwae_contenders, "posterior": posterior_contenders}
PROFILED = ("vae", "gpvae", "plain eager", "encode-once eager")


def interleave(
    contenders: dict[str, Contender], rounds: int, seconds: float, wait: Callable[[], None]
) -> dict[str, list[float]]:  # ms per unit, one number per round
    "Time all contenders one after the other, in every round anew and in alternating order."

    def measure(call, n):
        wait()
        start = time.perf_counter()
        for _ in range(n):
            call()
        wait()
        return time.perf_counter() - start

    for contender in contenders.values():
        contender.call()
    repeats = {name: max(1, math.ceil(seconds / measure(c.call, 1))) for name, c in contenders.items()}
    times = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            call, units = contenders[name]
            call()
            times[name].append(float(f"{1e3 * measure(call, repeats[name]) / repeats[name] / units:.5g}"))
    return times


def profile_call(call: Callable[[], object], repeats: int = 20, top: int = 12) -> list[dict]:
    "Shares of self time by operator; the last row is all the others."
    for _ in range(3):
        call()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(repeats):
            call()
    events = sorted(recorded.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)

    def row(name, events):
        share = sum(e.self_cpu_time_total for e in events) / total
        return {
            "operator": name,
            "share": round(share, 4),
            "calls": round(sum(e.count for e in events) / repeats, 1),
        }

    return [row(e.key, [e]) for e in events[:top]] + [row("all others", events[top:])]


def describe_machine(device: torch.device) -> dict:
    "What the times depend on."
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else (names or [platform.machine()])[0]
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2),
        "commit": commit(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    "Time the groups, print the ratios, write the file."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", default=list(GROUPS), help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="at least so long a turn")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--dataset", default="static_mnist", help="whose test images are used")
    args = parser.parse_args(argv)
    device, sizes = pick_device(args.device), Sizes()
    splits = prepare_splits(
        load(args.dataset), "static" if args.dataset == "static_mnist" else "fixed", device
    )
    x = to_float(splits.test[: sizes.batch], splits.eval_binarisation)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    result = {
        "machine": describe_machine(device),
        "sizes": asdict(sizes),
        "data": args.dataset,
        "rounds": args.rounds,
        "groups": {},
        "profiles": {},
    }
    for group in args.groups:
        contenders = GROUPS[group](sizes, x, args.dataset)
        times = result["groups"][group] = interleave(contenders, args.rounds, args.seconds, wait)
        for name, values in times.items():
            median, low, high, _ = bootstrap(np.median, np.divide(values, times["vae"]), n=4000)
            print(
                f"{group:10} {name:22} {np.median(values):9.3f} ms  {median:6.2f} [{low:.2f}, {high:.2f}] × vae"
            )
        for name in [n for n in PROFILED if n in contenders]:
            result["profiles"][f"{group} of {name}"] = profile_call(
                contenders[name].call, 20 if group != "iwae" else 2
            )
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
