"""The gaps of finished runs, image by image, and the scores that should tell a hard image from an easy one.

Images are measured in chunks that are kept in the folder of the run, so that a stopped measurement continues
to the same numbers. What pages need goes to the store: one row a run, and arrays by `<split>_<name>`, one
number an image."""
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from tqdm import tqdm

from gpvae.checks import check_kinds, require
from gpvae.data import binarise_fixed, data_root, load, prepare_splits, split_seed, to_float
from gpvae.encoders.gp import Uncertainty
from gpvae.evaluation.ais import AISConfig, fingerprint, sandwich
from gpvae.evaluation.gap import PARTS, WIDTHS, Gaps, iwae_by_width, measure_gaps
from gpvae.evaluation.scores import SHIFTS, leverage, scores
from gpvae.files import commit, device_name, locked, pick_device, read_arrays, write_arrays
from gpvae.inference.best_gaussian import Climb
from gpvae.posteriors import DiagonalGaussian
from gpvae.statistics import mean_and_error
from gpvae.study.config import RunConfig, load_images, resolve_all
from gpvae.study.run import RunResult, is_finished, load_model, open_run, runs_root
from gpvae.study.store import Store
from gpvae.study.studies import Study
from gpvae.vae import VAE, evaluating

COUNTS = dict(test=500, train=200, valid=300)  # images of each split
N_SHIFTED = 5000  # test images that a shift is applied to; its noise depends on how many there are
N_PICTURES = 20   # easiest and hardest test images whose pixels are kept
PARTS_OF = {      # split -> what is measured of its images
    "test": ("bound", "diagonal", "full", "annealed", "widths", "scores"),
    "train": ("bound", "diagonal", "annealed"),
    "valid": ("bound", "diagonal", "scores"),
} | {shift: ("scores",) for shift in (*SHIFTS, "letters")}


@dataclass(frozen=True)
class GapSettings:
    "What a gap depends on besides model and images."
    annealing: AISConfig = AISConfig(temperatures=50, chains=8, start="best")
    climb: Climb = Climb()               # of the searches; the family is set where they are made
    samples: int = 500                   # of every bound
    k: int = 100                         # importance samples
    widths: tuple[float, ...] = WIDTHS   # factors on the proposal's variances
    simulated: int = 32                  # images of the two-sided bound
    chunk: int = 32                      # images between two writes

    def __post_init__(self):
        check_kinds(int, 1, samples=self.samples, k=self.k, simulated=self.simulated, chunk=self.chunk)
        require(isinstance(self.widths, tuple), f"widths is {self.widths!r}: pass a tuple of factors")
        for width in self.widths:
            check_kinds(float, width=width)
            require(width > 0, f"widths is {self.widths}: every factor must be positive")
        require(1. in self.widths, f"widths is {self.widths}: it must contain 1, the proposal as it is")


def measure(study: Study,
            store: Store,                        # where rows and arrays are kept
            runs: str | Path | None = None,      # folder of all runs; None: GPVAE_RUNS, or the user's cache
            counts: Mapping[str, int] = COUNTS,  # images of each split
            settings: GapSettings = GapSettings(),
            seed: int = 0,                       # whose runs are measured, one of every line
            device: str | None = None,           # "cpu", "cuda"; None: a GPU if there is one
            bar: bool = True                     # show progress
            ) -> None:
    "Measure the finished runs of one seed, and keep each as it is done; `InputError` where a run is missing."
    check_counts(counts)
    runs, chosen = runs_root(runs), pick_device(device)
    require(runs.is_dir(), f"{runs} is not a folder: set GPVAE_RUNS, or pass the folder of the finished runs")
    study = study.of_seed(seed)
    for line, spec, result in zip(study.lines, study.specs, open_finished(study, runs)):
        with tqdm(unit="img", desc=f"{line} z={spec.z_dim} seed {seed}: gaps", disable=not bar) as progress:
            splits = measure_run(result, counts, settings, chosen, progress)
        pixels = easiest_and_hardest(result.config, splits["test"], line == study.reference)
        store.keep_gaps(gap_row(result, splits, settings, device_name(chosen)), pack_gaps(splits) | pixels)


def check_counts(counts: Mapping[str, int]) -> None:
    "Raise `InputError` for numbers of images that cannot be."
    require(set(counts) == set(COUNTS), f"counts is {dict(counts)}: name {', '.join(COUNTS)}")
    for split, n in counts.items():
        require(n >= 2, f"{split} is {n}: an error over images needs at least two")


def open_finished(study: Study, runs: Path) -> list[RunResult]:
    "The runs of a study; `InputError` where one is not finished."
    configs = resolve_all(study.specs)
    for config in configs:
        folder = runs / config.id
        require(is_finished(folder), f"{config.spec.text()} is not finished, {folder} has no whole run: "
                "train it first, by `gpvae reproduce` with the same words or by `gpvae run`")
    return [open_run(runs / config.id, config.spec) for config in configs]


def measure_run(result: RunResult, counts: Mapping[str, int], settings: GapSettings, device: torch.device,
                progress: tqdm                        # counts an image once for each part of its measurement
                ) -> dict[str, dict[str, np.ndarray]]:  # split -> name -> one number per image
    "Measure a run, or what is missing of it; `simulated` holds both bounds of images drawn from the model."
    folder, model = result.folder, load_model(result.folder, device)
    x, learned, binarisation = images_of(result.config, counts, device)
    progress.reset(total=sum(len(PARTS_OF[split]) * len(images) for split, images in x.items()))
    with locked(folder):
        splits = {split: measure_split(folder, model, split, images, binarisation, settings, progress.update)
                  for split, images in x.items()}
        scored = [split for split in splits if "score_feature_norm" in splits[split]]
        if scored:
            images = torch.cat([x[split] for split in scored])
            values = leverage(model, learned, images, binarisation)["leverage"]
            ends = np.cumsum([len(x[split]) for split in scored])[:-1]
            for split, part in zip(scored, np.split(values, ends)):
                splits[split] = splits[split] | {"score_leverage": part}
        return splits | {"simulated": measure_two_sided(folder, model, x["test"], settings)}


def images_of(config: RunConfig, counts: Mapping[str, int], device: torch.device
              ) -> tuple[dict[str, Tensor], Tensor, str]:
    "The images to measure by split, all images that the model was trained on, and how batches are made."
    data = load_images(config)
    splits = prepare_splits(data, config.binarisation)
    learned = splits.train
    if splits.train_binarisation == "stochastic":
        learned = binarise_fixed(learned, split_seed("train"))
    x = {split: getattr(splits, split)[:count] for split, count in counts.items()}
    x |= {"train": learned[:counts["train"]]}
    x |= {name: shift(splits.test[:N_SHIFTED])[:counts["test"]] for name, shift in SHIFTS.items()}
    if config.dataset != "omniglot" and (data_root() / "omniglot.npz").exists():
        letters = load("omniglot")
        if letters.x_shape == data.x_shape:  # drawn as the images of the set are
            of = letters.x_test[:counts["test"]]
            x["letters"] = of if config.binarisation == "none" else binarise_fixed(of, split_seed("test"))
    return {k: v.to(device) for k, v in x.items()}, learned.to(device), splits.eval_binarisation


def measure_split(folder: Path,                  # of the run
                  model: VAE,
                  split: str,                    # one of PARTS_OF
                  x: UInt8[Tensor, "N C H W"],
                  binarisation: str,             # "static", or "none"
                  settings: GapSettings = GapSettings(),
                  advance: Callable[[int], object] = lambda n: None  # called with the number of images done
                  ) -> dict[str, np.ndarray]:    # by name, one number per image
    "Measure the images that are not measured yet; whole chunks are kept."
    path, size = folder / f"gap_{split}.npz", settings.chunk
    key = fingerprint(model, x[:1], [0], split=split, binarisation=binarisation, **asdict(settings))
    columns = read_measured(path, key)
    done = len(columns.get("seconds", ()))
    if done < len(x):  # a last chunk that was not whole is measured again, with the noise of a whole one
        done = done // size * size
        columns = {k: v[:done] for k, v in columns.items()}
    advance(len(PARTS_OF[split]) * min(done, len(x)))
    for first in range(done, len(x), size):
        chunk = measure_chunk(model, split, x[first:first + size], first, binarisation, settings, advance)
        columns = {k: np.concatenate([columns[k], v]) if k in columns else v for k, v in chunk.items()}
        write_arrays(path, columns, {"key": key})
    return {k: v[:len(x)] for k, v in columns.items()}


def read_measured(path: Path, key: str) -> dict[str, np.ndarray]:  # empty where there is no file
    "What was measured before; `InputError` where it was measured otherwise."
    if not path.exists():
        return {}
    columns, about = read_arrays(path)
    require(about.get("key") == key, f"{path} belongs to {about.get('key')}, not to {key}: settings, images "
            "or weights differ, pass the same settings or delete it")
    return columns


def measure_chunk(model: VAE, split: str, x: UInt8[Tensor, "B C H W"],
                  first: int,                     # number of the first image in its split; seeds the noise
                  binarisation: str, settings: GapSettings, advance: Callable[[int], object]
                  ) -> dict[str, np.ndarray]:     # by name, one number per image
    "All that a split needs of some images, with the seconds that an image took."
    begun, s, parts = time.perf_counter(), settings, PARTS_OF[split]
    values, of_gaps = {}, [part for part in parts if part in PARTS]
    if of_gaps:
        gaps = measure_gaps(model, x, s.annealing, s.climb, binarisation, s.samples, first, of_gaps, len(x),
                            progress=lambda part, n: advance(n))
        values |= {name: getattr(gaps, name) for part in of_gaps for name in PARTS[part]}
    if "widths" in parts:
        by_width = iwae_by_width(model, x, s.k, binarisation, s.widths, seed=3 * first + 2)
        values |= {f"iwae_{width}": iwae for width, iwae in by_width.items()}
        advance(len(x))
    if "scores" in parts:
        values |= {f"score_{name}": v for name, v in difficulty_scores(model, x, binarisation).items()}
        advance(len(x))
    return values | {"seconds": np.full(len(x), (time.perf_counter() - begun) / len(x))}


def difficulty_scores(model: VAE, x: UInt8[Tensor, "B C H W"], binarisation: str) -> dict[str, np.ndarray]:
    "All scores of difficulty; none for a posterior that is no diagonal Gaussian."
    with evaluating(model):
        if not isinstance(model.posterior(to_float(x[:1], binarisation)), DiagonalGaussian):
            return {}
    found = scores(model, x, binarisation)
    return {k: v for k, v in found.items() if model.encoder.is_stochastic or k not in Uncertainty._fields}


def measure_two_sided(folder: Path, model: VAE, x: UInt8[Tensor, "N C H W"], settings: GapSettings
                      ) -> dict[str, np.ndarray]:  # lower, upper; nats
    "Both bounds on log p(x) of images drawn from the model; they are measured once."
    path = folder / "gap_simulated.npz"
    key = fingerprint(model, x[:1], [0], name="simulated", **asdict(settings))
    bounds = read_measured(path, key)
    if not bounds:
        both = sandwich(model, settings.simulated, tuple(x.shape[1:]), settings.annealing)
        bounds = {"lower": both.lower.log_px.numpy(), "upper": both.upper.log_px.numpy()}
        write_arrays(path, bounds, {"key": key})
    return bounds


def gap_row(result: RunResult, splits: dict[str, dict[str, np.ndarray]], settings: GapSettings,
            machine: str) -> dict[str, object]:
    "One row: the run, how it was measured, its two-sided bound, IWAE by width, and the seconds it took."
    row = {name: result.row[name] for name in ("run", "checksum", "protocol")}
    row |= {k: getattr(settings.annealing, k) for k in ("temperatures", "chains", "leapfrog_steps", "start")}
    row |= dict(samples=settings.samples, k=settings.k, machine=machine, commit=commit())
    both = splits["simulated"]["upper"] - splits["simulated"]["lower"]
    mean, error = mean_and_error(both)
    row |= dict(sandwich=mean, sandwich_error=error, sandwich_largest=float(both.max()), simulated=len(both))
    test = splits["test"]
    for name in (f"iwae_{width}" for width in settings.widths):
        row |= {name: float(test[name].mean()),
                f"{name}_error": mean_and_error(test[name] - test["iwae_1.0"])[1]}
    return row | dict(seconds=float(sum(v["seconds"].sum() for v in splits.values() if "seconds" in v)))


def pack_gaps(splits: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:  # by <split>_<name>
    "What is kept of the images; of the widths only the one that the method has."
    arrays = {}
    for split, columns in splits.items():
        for name, values in columns.items():
            if name == "seconds" or (name.startswith("iwae_") and name != "iwae_1.0"):
                continue
            exact = values.dtype == bool
            digits = 12 if name.startswith("score_") else 16
            arrays[f"{split}_{name}"] = values if exact else round_binary(values, digits)
    return arrays


def round_binary(values: Float[np.ndarray, "n"], digits: int) -> Float[np.ndarray, "n"]:
    "Numbers to some binary digits, as float32: small when compressed; not-a-number stays."
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2**digits) / 2**digits, exponent).astype(np.float32)


def doubt(columns: Mapping[str, np.ndarray]) -> np.ndarray | None:  # nats; None without random functions
    "What answers as far off as the random functions hold possible cost the bound, per image."
    parts = [columns.get(f"score_{name}") for name in ("f_relative", "g")]
    return None if parts[0] is None or parts[1] is None else 0.5 * parts[0] + parts[1]


def easiest_and_hardest(config: RunConfig, test: dict[str, np.ndarray],
                        pictured: bool  # also without random functions
                        ) -> dict[str, Shaped[np.ndarray, "n ..."]]:
    "Pixels of the easiest test images, then of the hardest, by the amortization gap and by the doubt."
    measures = {"amortization": Gaps.of(test, len(test["elbo"])).amortization, "doubt": doubt(test)}
    if measures["doubt"] is None and not pictured:
        return {}
    splits = prepare_splits(load_images(config), config.binarisation)
    pictures = {}
    for name, values in measures.items():
        if values is not None:
            order = np.argsort(values, kind="stable")
            order = order[np.isfinite(values[order])]
            n = min(N_PICTURES, len(order) // 2)
            x = splits.test[np.concatenate([order[:n], order[len(order) - n:]])]
            pixels = (to_float(x, splits.eval_binarisation) * 255).round().to(torch.uint8)
            pictures[f"pictures_{name}"] = pixels.numpy()
    return pictures
