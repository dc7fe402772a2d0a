"Every kind of file that is kept, damaged in four ways at many places, and read as the package reads it."

import dataclasses
import hashlib
import os
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from faults import Tally, outcome
from gpvae.data import load
from gpvae.evaluation.ais import AISConfig
from gpvae.inference.best_gaussian import Climb
from gpvae.study.config import RunSpec
from gpvae.study.gaps import GapSettings, images_of, measure, measure_split, measure_two_sided
from gpvae.study.run import load_model, open_run, read_config, run, time_run
from gpvae.study.store import Store
from gpvae.study.studies import Study
from gpvae.training import load_checkpoint

SPEC = RunSpec(z_dim=3, settings=dict(epochs=2, hidden=(16, 16), n_train=100, n_test=40, k=4))
COUNTS = dict(test=12, train=4, valid=12)
GAPS = GapSettings(AISConfig(temperatures=3, chains=2, leapfrog_steps=1, start="posterior"), Climb(steps=25),
                   samples=10, k=4, simulated=3, chunk=8)
BLOCK = 48  # bytes

class Kept(NamedTuple):
    "A file that is kept."

    kind: str  # of file
    path: Path
    other: bytes  # the content of the same file of another run
    read: Callable  # what the package reads from it

def content(value: object) -> object:
    "Whatever was read, as something that can be compared to the bit."
    if isinstance(value, torch.Tensor):
        return content(value.numpy())
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
    if isinstance(value, pd.DataFrame):
        return value.to_csv()
    if isinstance(value, dict):
        return {k: content(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value):
        return content(vars(value))
    if isinstance(value, (tuple, list)):
        return [content(v) for v in value]
    return repr(value)

# --- one finished run, and another ----------------------------------------------------------------

def finished(folder: Path, seed: int) -> tuple[Path, Store, Path]:
    "A run with times and gaps, a store with its rows, and a prepared copy: folder, store, folder."
    data, spec = folder / "data", dataclasses.replace(SPEC, seed=seed)
    os.environ["GPVAE_DATA"] = str(data)
    result, store = run(spec, folder / "runs", "cpu", bar=False), Store(folder / "store")
    time_run(result.folder, "cpu", repeats=2)
    result = open_run(result.folder, spec)
    store.keep([result], [result.config.id])
    measure(Study("one", "One", (spec,)), store, folder / "runs", COUNTS, GAPS, seed, "cpu", bar=False)
    return result.folder, store, next((data / "prepared").iterdir())

def other_images(folder: Path) -> Path:
    "A prepared copy of other images of the same shapes."
    x = load("digits", folder.parent)
    own = folder / "digits.npz"
    folder.mkdir()
    as_saved = lambda t: np.moveaxis(255 - t.numpy(), 1, -1)
    labels = {f"y_{s}": 9 - getattr(x, f"y_{s}").numpy() for s in ("train", "valid", "test")}
    np.savez(own, **{f"x_{s}": as_saved(getattr(x, f"x_{s}")) for s in ("train", "valid", "test")}, **labels)
    load("digits", folder)
    return next((folder / "prepared").iterdir())

def kept_files(folder: Path) -> list[Kept]:
    "Every file that a run, its measurements, the store and the data keep, each with its reader."
    (mine, store, _), (other, other_store, _) = [finished(folder / str(seed), seed) for seed in (0, 1)]
    data = folder / "0" / "data"
    os.environ["GPVAE_DATA"] = str(data)
    prepared, other_prepared = next((data / "prepared").iterdir()), other_images(data / "other")
    files = [
        Kept(path.name, path, (other / path.name).read_bytes(), read) for path, read in run_readers(mine)
    ]
    tables = ("runs", "modes", "gaps")
    for name in tables:
        path = store.folder / f"{name}.csv"
        files.append(Kept(path.name, path, (other_store.folder / path.name).read_bytes(),
                          partial(store.table, name)))
    sums = store.folder / "SHA256SUMS"
    read_all = lambda: [store.table(name) for name in tables]
    files.append(Kept(sums.name, sums, (other_store.folder / sums.name).read_bytes(), read_all))
    for kind in ("runs", "gaps"):
        path = store.folder / kind / f"{mine.name}.npz"
        other_path = other_store.folder / kind / f"{other.name}.npz"
        files.append(Kept(f"{kind}/....npz", path, other_path.read_bytes(),
                          partial(store.arrays, mine.name, kind)))
    for path in sorted(prepared.iterdir()):
        kind = "prepared meta.json" if path.suffix == ".json" else f"prepared {path.name[0]}_....npy"
        files.append(Kept(kind, path, (other_prepared / path.name).read_bytes(),
                          lambda: load("digits", data)))
    return files

def run_readers(mine: Path) -> list[tuple[Path, Callable]]:
    "The files in the folder of a run, and how each is read."
    model, config = load_model(mine), read_config(mine)
    x, _, binarisation = images_of(config, COUNTS, torch.device("cpu"))
    opened = lambda: open_run(mine)
    weights = lambda: (load_checkpoint(mine / "checkpoint.safetensors"), load_model(mine).state_dict())
    readers = {"checkpoint.safetensors": weights, "per_image.safetensors": opened, "metrics.json": opened,
               "timing.json": opened, "config.json": lambda: vars(read_config(mine)),
               "gap_simulated.npz": lambda: measure_two_sided(mine, model, x["test"], GAPS)}
    for split in x:
        readers[f"gap_{split}.npz"] = partial(measure_split, mine, model, split, x[split], binarisation, GAPS)
    return [(mine / name, read) for name, read in readers.items()]

# --- four ways to damage a file -------------------------------------------------------------------

def place(size: int, share: float, width: int = 1) -> int:
    return round(share * max(0, size - width))

def flip(old: bytes, share: float, other: bytes, rng: random.Random) -> bytes:
    "One bit."
    i = min(place(len(old), share), len(old) - 1)
    return old[:i] + bytes([old[i] ^ 1 << rng.randrange(8)]) + old[i + 1 :]

def cut(old: bytes, share: float, other: bytes, rng: random.Random) -> bytes:
    "The end is lost."
    return old[: place(len(old), share)]

def zero(old: bytes, share: float, other: bytes, rng: random.Random) -> bytes:
    "A block of zeros."
    n = min(BLOCK, len(old) // 4 + 1)
    i = place(len(old), share, n)
    return old[:i] + bytes(n) + old[i + n :]

def swap(old: bytes, share: float, other: bytes, rng: random.Random) -> bytes:
    "The whole file of another run, a block of it, or two blocks of the file itself."
    if share == 0:
        return other
    n = min(BLOCK, len(old) // 4 + 1)
    i, j = place(len(old), share, n), rng.randrange(max(1, len(old) - 2 * n))
    if rng.random() < 0.5:
        return old[:i] + other[i : i + n].ljust(n, b"\0") + old[i + n :]
    i, j = sorted((i, j))
    if j < i + n:
        j = i + n
    return old[:i] + old[j : j + n] + old[i + n : j] + old[i : i + n] + old[j + n :]

DAMAGES = (flip, cut, zero, swap)

def damaged(file: Kept, old: bytes, damage: Callable, share: float, rng: random.Random) -> bytes:
    "Content that differs from what was written."
    for _ in range(50):
        new = damage(old, share, file.other, rng)
        if new != old:
            return new
        share = rng.random()  # a block of zeros, or the same in both runs
    return flip(old, share, file.other, rng)

def damage_file(file: Kept, places: int, tally: Tally) -> None:
    "Damage a file at so many places in each way."
    old, rng = file.path.read_bytes(), random.Random(file.path.name)
    right = content(file.read())
    times = file.path.stat()
    for damage in DAMAGES:
        for i in range(places):
            share = (i + rng.random() * (i > 0)) / places
            new = damaged(file, old, damage, share, rng)
            file.path.write_bytes(new)
            tally.add(file.kind, f"{damage.__name__} at {share:.3f} of {file.path.name}",
                      outcome(file.read, lambda r: content(r) == right))
    file.path.write_bytes(old)
    os.utime(file.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content(file.read()) == right

def main(places: int) -> int:
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        files = kept_files(Path(folder))
        for file in files:
            damage_file(file, places, tally)
    print(f"{len(files)} files, {len(DAMAGES)} kinds of damage, {places} places each")
    return tally.report("damaged file")
