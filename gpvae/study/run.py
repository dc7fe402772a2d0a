"One model: build, train, evaluate, time, record. A finished run is opened, a killed one continues."
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs
import torch
from torch import Tensor
from tqdm import tqdm

from gpvae.checks import require
from gpvae.data import Splits, prepare_splits
from gpvae.encoders.mixture import separation
from gpvae.encoders.natural_step import with_natural_step
from gpvae.evaluation.gap import iwae_by_width
from gpvae.evaluation.iwae import evaluate
from gpvae.evaluation.timing import posterior_ms, step_ms
from gpvae.files import (commit, device_name, locked, open_folder, peak_mb, pick_device, read_json,
                         read_tensors, reading, write_json, write_tensors)
from gpvae.pixels import to_float
from gpvae.posteriors import GaussianMixture
from gpvae.study.config import (PROTOCOL, RunConfig, RunSpec, build_model, config_from_json, config_to_json,
                                load_images, resolve)
from gpvae.training import load_checkpoint, refit, train, unprefixed, validation_bound
from gpvae.units import dead_units
from gpvae.vae import VAE, evaluating, frozen

TIMES = ("infer_ms_batch", "infer_ms_one", "step_ms")
WIDTHS = (1., 1.4, 2., 3., 4.5)      # factors on the proposal's variances that validation images choose from
N_CHOOSE, N_WIDENED = 200, 1024      # validation and test images of it
N_MODES = 2000                       # test images that are judged in every test-time mode
N_SAMPLES, N_RECONSTRUCTIONS = 16, 10  # pictures that are kept


def runs_root(root: str | Path | None = None  # None: the variable `GPVAE_RUNS`, else the user's cache
              ) -> Path:
    "Where run folders live."
    root = root or os.environ.get("GPVAE_RUNS") or Path(platformdirs.user_cache_dir("gpvae")) / "runs"
    return Path(root).expanduser().absolute()


@dataclass(frozen=True)
class RunResult:
    "A finished run."
    folder: Path
    config: RunConfig
    row: dict[str, object]             # one row of the results
    modes: list[dict[str, object]]     # bounds in each test-time mode, one row a mode
    per_image: dict[str, np.ndarray]   # name -> one number per test image
    history: list[dict[str, float]]    # of training, one an epoch
    pictures: dict[str, np.ndarray]    # samples, images, reconstructions: uint8 [N, C, H, W]


def is_finished(folder: Path) -> bool:
    "Has a run left its row and its numbers?"
    return all((folder / name).exists() for name in ("config.json", "metrics.json", "per_image.safetensors"))


def read_config(folder: Path) -> RunConfig:
    "The configuration of a run; `InputError` for a folder of another protocol or under another run's name."
    path = folder / "config.json"
    content = read_json(path)
    require(content.get("protocol") == PROTOCOL, f"{folder} is of protocol {content.get('protocol')}, this "
            f"version has {PROTOCOL}: its numbers cannot be compared, run the specification again")
    with reading(path):
        config = config_from_json(content)
    named = config.id == folder.absolute().name
    require(named, f"{folder} holds run {config.id}: rename the folder to that, or delete it")
    return config


def check_owner(path: Path, owner: str | None, folder: Path) -> None:
    "Raise `InputError` for a file of another run."
    require(owner == folder.absolute().name, f"{path} belongs to run {owner}: delete it and run again")


def open_run(folder: Path,
             spec: RunSpec | None = None  # one that resolves to this run, whose words the row takes
             ) -> RunResult:
    "Read and verify a finished run."
    config = read_config(folder)
    metrics = read_json(folder / "metrics.json")
    check_owner(folder / "metrics.json", metrics["row"].get("run"), folder)
    row, timing = metrics["row"] | describe_spec(spec or config.spec), folder / "timing.json"
    if timing.exists():
        times = read_json(timing)
        check_owner(timing, times.get("run"), folder)
        require(times["machine"] == row["machine"], f"{timing} was measured on {times['machine']}, the run "
                f"was made on {row['machine']}: delete it and time the run there")
        row |= {name: times[name] for name in TIMES}
    tensors, about = read_tensors(folder / "per_image.safetensors")
    check_owner(folder / "per_image.safetensors", about.get("run"), folder)
    pictures = {k: tensors.pop(k).numpy() for k in ("samples", "images", "reconstructions")}
    per_image = {k: v.numpy() for k, v in tensors.items()}
    return RunResult(folder, config, row, metrics["modes"], per_image, metrics["history"], pictures)


def describe_spec(spec: RunSpec) -> dict[str, object]:
    "The columns of a row that say what was asked for."
    settings = " ".join(f"{k}={v!r}".replace(" ", "") for k, v in spec.settings)
    return dict(spec=spec.text(), budget=spec.budget, settings=settings,
                parent=spec.parent.text() if spec.parent else "")


def apply_evaluation(model: VAE, config: RunConfig) -> VAE:
    "A model as it is judged: with a natural-gradient step on each image, or as it is."
    factor = config.evaluation.natural_step
    return with_natural_step(model, factor=factor) if factor else model


def load_model(folder: Path, device: str | torch.device = "cpu") -> VAE:
    "The trained model of a run, as it is judged, in evaluation mode."
    config = read_config(folder)
    trained = folder.parent / config.trained.id
    tensors, progress = load_checkpoint(trained / "checkpoint.safetensors", device)
    check_owner(trained / "checkpoint.safetensors", progress["question"]["key"], trained)
    model = build_model(config)
    model.load_state_dict(unprefixed("best.", tensors))
    return apply_evaluation(model, config).to(device).eval()


class Workplace(NamedTuple):
    "Where runs are made, and how they show what they do."
    runs: Path      # folder of all runs
    device: torch.device
    bar: bool       # show progress
    position: int   # line of the bar on the terminal


def run(spec: RunSpec,
        runs: str | Path | None = None,  # folder of all runs; None: GPVAE_RUNS, else the user's cache
        device: str | None = None,       # "cpu", "cuda"; None: a GPU if there is one
        bar: bool = True,                # show progress
        position: int = 0                # line of the bar on the terminal
        ) -> RunResult:
    "Train and evaluate one model, or open it if that is done."
    place = Workplace(runs_root(runs), pick_device(device), bar, position)
    return open_run(ensure_run(resolve(spec), place), spec)


def ensure_run(config: RunConfig, place: Workplace) -> Path:
    "The folder of a run, which is finished first where it is not."
    folder = place.runs / config.id
    if is_finished(folder):
        return folder
    open_folder(folder, "set GPVAE_RUNS or pass another folder")
    with locked(folder):
        for draft in folder.glob(".[0-9]*.*"):  # of a killed process
            draft.unlink()
        if not (folder / "config.json").exists():
            write_json(folder / "config.json", config_to_json(config))
        read_config(folder)
        splits = prepare_splits(load_images(config), config.binarisation, place.device)
        if config.trained.id == config.id:
            train_run(config, build_model(config).to(place.device), splits, place)
        else:
            check_evaluation(config, splits)
            ensure_run(config.trained, place)
        evaluate_run(config, splits, place)
    return folder


def check_evaluation(config: RunConfig, splits: Splits) -> None:
    "Raise `InputError`, before anything is trained, where the posterior cannot be judged as it is asked for."
    model = apply_evaluation(build_model(config).to(splits.valid.device), config)
    with evaluating(model):
        model.posterior(to_float(splits.valid[:1], splits.eval_binarisation))


def train_run(config: RunConfig, model: VAE, splits: Splits, place: Workplace) -> None:
    "Train the model of a configuration into its checkpoint, after its parent, resuming from there."
    fit = train
    if config.parent is not None:
        load_decoder(model, load_model(ensure_run(config.parent, place), place.device), config.model.start)
        fit = refit
    fit(model, splits.train, splits.valid, splits.train_binarisation, config.train,
        path=place.runs / config.id / "checkpoint.safetensors", key=config.id, bar=place.bar,
        label=f"{config.method} seed {config.seed}", position=place.position)


def load_decoder(model: VAE, parent: VAE, start: str  # "trained" or "new"
                 ) -> None:
    "Give a model the decoder and the likelihood of another, and its encoder to start from."
    model.decoder.load_state_dict(parent.decoder.state_dict())
    model.likelihood.load_state_dict(parent.likelihood.state_dict())
    if start == "new":
        return
    own, given = model.encoder.state_dict(), parent.encoder.state_dict()
    fits = all(k in own and own[k].shape == v.shape for k, v in given.items())
    require(fits, "the encoder has no place for the weights of the decoder's run: set start=new")
    model.encoder.load_state_dict(given, strict=False)


def evaluate_run(config: RunConfig, splits: Splits, place: Workplace) -> None:
    "Judge the trained model and write its numbers down, the row last."
    folder, trained = place.runs / config.id, place.runs / config.trained.id
    _, progress = load_checkpoint(trained / "checkpoint.safetensors")
    model = load_model(folder, place.device)
    x, binarisation, k = splits.test, splits.eval_binarisation, config.evaluation.k
    with tqdm(total=len(x), unit="img", desc=f"{config.method} IWAE-{k}", disable=not place.bar,
              position=place.position, leave=False) as bar:
        scores = evaluate(model, x, k, binarisation, progress=bar.update)
    tried = iwae_by_width(model, splits.valid[:N_CHOOSE], k, binarisation, WIDTHS)
    width = max(tried, key=lambda factor: tried[factor].mean())
    widened = evaluate(model, x[:N_WIDENED], k, binarisation, inflation=width).iwae
    gain = (widened - scores.iwae[:N_WIDENED]).mean().item()
    row = identify(config, place.device)
    row |= summarise_training(config, model, progress["history"], progress["seconds"], splits)
    row |= dict(elbo=scores.elbo.mean().item(), iwae=scores.iwae.mean().item(), k=k,
                iwae_error=scores.standard_error(), ess=scores.ess.mean().item(),
                width=width, iwae_widened=scores.iwae.mean().item() + gain)
    row |= describe_mixture(model, x, binarisation) | {"peak_mb": peak_mb(place.device)}
    per_image = {"elbo": scores.elbo, "iwae": scores.iwae, "ess": scores.ess, "iwae_widened": widened}
    tensors = {name: value.float() for name, value in per_image.items()}
    tensors |= measure_uncertainty(model, x, binarisation) | draw_pictures(model, x, binarisation)
    modes = [{"run": config.id} | mode for mode in evaluate_modes(model, x, binarisation, k)]
    write_tensors(folder / "per_image.safetensors", tensors, {"run": config.id})
    write_json(folder / "metrics.json", {"row": row, "modes": modes, "history": progress["history"]})


def identify(config: RunConfig, device: torch.device) -> dict[str, object]:
    "The columns of a row that say which run it is, and where it was made."
    names = ("dataset", "method", "z_dim", "seed", "likelihood", "binarisation", "protocol")
    return ({"run": config.id} | {name: getattr(config, name) for name in names}
            | dict(n_train=config.data.n_train, n_test=config.data.n_test, checksum=config.checksum[:12],
                   machine=device_name(device), torch=torch.__version__, commit=commit()))


def summarise_training(config: RunConfig, model: VAE, history: list[dict], seconds: float, splits: Splits
                       ) -> dict[str, object]:
    "What training says of itself, and the validation of the model that is judged."
    best = max(range(len(history)), key=lambda epoch: history[epoch]["valid_elbo"])
    valid = unprefixed("valid_", history[best])
    if config.trained.id != config.id:
        valid = validation_bound(model, splits.valid, splits.eval_binarisation)
    units = dead_units(model, to_float(splits.valid[:1000], splits.eval_binarisation))
    return dict(valid_elbo=valid["elbo"], train_elbo=history[best]["elbo"], kl=valid["kl"],
                active_units=valid["active"], best_epoch=best, epochs=len(history), train_seconds=seconds,
                **units._asdict(), norm_max=max(epoch["norm_max"] for epoch in history),
                cut=float(np.mean([epoch["cut"] for epoch in history])))


def evaluate_modes(model: VAE, x: Tensor, binarisation: str, k: int) -> list[dict[str, object]]:
    "Bounds in each test-time mode; empty for an encoder without modes."
    encoder, rows = model.encoder, []
    if not encoder.modes:
        return rows
    usual = encoder.mode
    for mode in encoder.modes:
        encoder.mode = mode
        scores = evaluate(model, x[:N_MODES], k, binarisation)
        rows.append({"mode": mode} | {k: getattr(scores, k).mean().item() for k in ("elbo", "iwae", "ess")})
    encoder.mode = usual
    return rows


def describe_mixture(model: VAE, x: Tensor, binarisation: str) -> dict[str, object]:
    "Mean weights of a mixture, and the nats that a latent tells of its component; None for other posteriors."
    with evaluating(model):
        if not isinstance(model.posterior(to_float(x[:1], binarisation)), GaussianMixture):
            return dict(weights=None, information=None)
        q = model.posterior(to_float(x[:500], binarisation))
    weights = " ".join(f"{weight:.3f}" for weight in q.log_pi.exp().mean(1).tolist())
    generator = torch.Generator(x.device).manual_seed(0)
    return dict(weights=weights, information=separation(q, 100, generator).mean().item())


def measure_uncertainty(model: VAE, x: Tensor, binarisation: str) -> dict[str, Tensor]:
    "The encoder's uncertainty of every image, by name; empty for an encoder without one."
    with evaluating(model):
        parts = [model.encoder.uncertainty(to_float(part, binarisation)) for part in x.split(500)]
    if parts[0] is None:
        return {}
    columns = zip(parts[0]._fields, zip(*parts))
    return {f"uncertainty_{name}": torch.cat(column).cpu().float() for name, column in columns}


@torch.no_grad()
def draw_pictures(model: VAE, x: Tensor, binarisation: str) -> dict[str, Tensor]:  # uint8 [N, C, H, W]
    "Means of images drawn from the prior, and test images beside the means at a sample of their posteriors."
    generator = torch.Generator(x.device).manual_seed(0)
    z = torch.randn(1, N_SAMPLES, model.z_dim, generator=generator, device=x.device)
    images = to_float(x[:N_RECONSTRUCTIONS], binarisation)
    with evaluating(model):
        means = model.likelihood.mean(model.decoder(z))[0]
        q = model.posterior(images)
        z, _ = q.rsample_and_log_prob(1, generator)
        again = model.likelihood.mean(model.decoder(z))[0]
    found = dict(samples=means, images=images, reconstructions=again)
    shape = (-1, *x.shape[1:])
    return {k: (v.reshape(shape).clamp(0, 1) * 255).round().to(torch.uint8).cpu() for k, v in found.items()}


def time_run(folder: Path,              # of a finished run
             device: str | None = None,  # None: a GPU if there is one
             repeats: int = 50          # timed calls
             ) -> dict[str, float]:     # ms
    "Time the posterior of a batch of 128 and of one image, and a training step; kept beside the row."
    config, device = read_config(folder), pick_device(device)
    made, here = read_json(folder / "metrics.json")["row"]["machine"], device_name(device)
    require(here == made, f"{folder} was made on {made}, this is {here}: time it there, or pass its --device")
    splits = prepare_splits(load_images(config), config.binarisation, device)
    model, x = load_model(folder, device), to_float(splits.test[:128], splits.eval_binarisation)
    times = {"infer_ms_batch": posterior_ms(model, x, repeats),
             "infer_ms_one": posterior_ms(model, x[:1], repeats)}
    constant = () if config.parent is None else (model.decoder, model.likelihood)
    with frozen(*constant):
        times["step_ms"] = step_ms(model, x, repeats, config.train)
    with locked(folder, wait=60):
        write_json(folder / "timing.json", times | {"run": config.id, "machine": here})
    return times
