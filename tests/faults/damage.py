"Every kind of file that is kept, damaged in four ways at many places, and opened by the reader that the package uses."
import dataclasses
import hashlib
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
import torch

from faults import Tally, outcome
from gpvae.evaluation.ais import AISConfig
from gpvae.data import load, prepare_splits
from gpvae.files import device_name, pick_device
from gpvae.inference.best_gaussian import Climb
from gpvae.study.gaps import _kept_images, _kept_row
from gpvae.study.measure import _ONCE, GapSettings, _measure_once, measure_run, measure_split
from gpvae.study.run import RunResult, load_model, read_spec, run, run_images, time_run
from gpvae.study.spec import RunSpec
from gpvae.study.store import Store
from gpvae.data import to_float
from gpvae.train import load_checkpoint

SETTINGS = (("epochs", 2), ("hidden", (16, 16)), ("n_test", 40), ("k", 4))
SPEC = RunSpec(z_dim=3, n_train=100, settings=SETTINGS)
COUNTS = dict(test=12, train=4, valid=12)
GAPS = GapSettings(AISConfig(temperatures=3, chains=2, leapfrog_steps=1, start="posterior"), Climb(steps=25), samples=10, k=4, simulated=3,
                   refine_steps=1, chunk=8)
BLOCK = 48 # bytes

class Kept(NamedTuple):
    "A file that is kept."
    kind: str         # of file
    path: Path
    other: bytes      # the content of the same file of another run
    read: Callable    # what the package reads from it

def content(value: object) -> object:
    "Whatever was read, as something that can be compared to the bit."
    if isinstance(value, torch.Tensor): return content(value.numpy())
    if isinstance(value, np.ndarray): return str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
    if isinstance(value, pd.DataFrame): return value.to_csv()
    if isinstance(value, dict): return {k: content(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value): return content(vars(value))
    if isinstance(value, (tuple, list)): return [content(v) for v in value]
    return repr(value)

# --- one finished run, and another ----------------------------------------------------------------------------------------------------------

def finished(folder: Path, seed: int) -> tuple[Path, Path, Path]:
    "A run with times and gaps, a store with its rows, and a prepared copy: the three folders."
    data, spec = folder / "data", dataclasses.replace(SPEC, seed=seed)
    os.environ["GPVAE_DATA"] = str(data)
    result = run(spec, folder / "runs", "cpu", bar=False)
    time_run(result.folder, "cpu", repeats=2)
    result, store = RunResult.open(result.folder, spec), Store(folder / "store")
    store.keep([result])
    measured = measure_run(result.folder, COUNTS, GAPS, "cpu")
    row = _kept_row(result, measured, GAPS, device_name(pick_device("cpu")))
    store.keep_gaps(row, _kept_images(row["spec"], measured))
    store.keep_refits([{"spec": row["spec"], "part": "heads", "fitted": "test images", "method": "gpvae", "seed": seed, "settings": "", "won": 0.1}])
    return result.folder, store.folder, next((data / "prepared").iterdir())

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
    files = [Kept(path.name, path, (other / path.name).read_bytes(), read) for path, read in run_readers(mine)]
    kept = Store(store)
    tables = dict(runs=kept.runs, modes=kept.modes, gaps=kept.gaps, refit=kept.refits)
    rows, gap_rows, same = kept.runs(), kept.gaps(), lambda p: (other_store / p.relative_to(store)).read_bytes()
    files += [Kept(p.name, p, same(p), tables[p.stem]) for p in sorted(store.glob("*.csv"))]
    sums = store / "SHA256SUMS"
    files.append(Kept(sums.name, sums, same(sums), lambda: [read() for read in tables.values()]))
    for p in sorted((store / "images").glob("*.npz")):
        gaps = p.name.startswith("gaps-")
        read = (lambda: kept.gap_images(gap_rows)) if gaps else (lambda: kept.images(rows))
        files.append(Kept("images/gaps-….npz" if gaps else "images/….npz", p, same(p), read))
    for p in sorted(prepared.iterdir()):
        kind = "prepared meta.json" if p.suffix == ".json" else f"prepared {p.name[0]}_….npy"
        files.append(Kept(kind, p, (other_prepared / p.name).read_bytes(), lambda: load("digits", data)))
    return files

def run_readers(mine: Path) -> list[tuple[Path, Callable]]:
    "The files in the folder of a run, and how each is read."
    model, (spec, data) = load_model(mine), run_images(mine)
    splits = prepare_splits(data, spec.binarisation)
    opened = lambda: RunResult.open(mine)
    weights = lambda: (load_checkpoint(mine / "checkpoint.safetensors"), load_model(mine).state_dict())
    readers = {"checkpoint.safetensors": weights, "per_image.safetensors": opened, "metrics.json": opened, "timing.json": opened,
               "spec.json": lambda: (read_spec(mine), run_images(mine)[1].checksum)}
    for split in ("train", "test", "valid"):
        x = getattr(splits, split)[:COUNTS[split]]
        readers[f"gap_{split}.npz"] = lambda split=split, x=x: measure_split(mine, model, split, x, splits.eval_binarisation, GAPS)
    batch = to_float(splits.test[:12], splits.eval_binarisation)
    for name in _ONCE: readers[f"gap_{name}.npz"] = lambda name=name: _measure_once(mine, model, name, batch, GAPS)
    return [(mine / name, read) for name, read in readers.items()]

# --- four ways to damage a file -----------------------------------------------------------------------------------------------------------------

def place(size: int, share: float, width: int = 1) -> int: return round(share * max(0, size - width))

def flip(old: bytes, share: float, other: bytes, rng: random.Random) -> bytes:
    "One bit."
    i = min(place(len(old), share), len(old) - 1)
    return old[:i] + bytes([old[i] ^ 1 << rng.randrange(8)]) + old[i + 1:]

def cut(old: bytes, share: float, other: bytes, rng: random.Random) -> bytes:
    "The end is lost."
    return old[:place(len(old), share)]

def zero(old: bytes, share: float, other: bytes, rng: random.Random) -> bytes:
    "A block of zeros."
    n = min(BLOCK, len(old) // 4 + 1)
    i = place(len(old), share, n)
    return old[:i] + bytes(n) + old[i + n:]

def swap(old: bytes, share: float, other: bytes, rng: random.Random) -> bytes:
    "The whole file of another run, a block of it, or two blocks of the file itself."
    if share == 0: return other
    n = min(BLOCK, len(old) // 4 + 1)
    i, j = place(len(old), share, n), rng.randrange(max(1, len(old) - 2 * n))
    if rng.random() < 0.5: return old[:i] + other[i:i + n].ljust(n, b"\0") + old[i + n:]
    i, j = sorted((i, j))
    if j < i + n: j = i + n
    return old[:i] + old[j:j + n] + old[i + n:j] + old[i:i + n] + old[j + n:]

DAMAGES = (flip, cut, zero, swap)

def damaged(file: Kept, old: bytes, damage: Callable, share: float, rng: random.Random) -> bytes:
    "Content that differs from what was written."
    for _ in range(50):
        new = damage(old, share, file.other, rng)
        if new != old: return new
        share = rng.random() # a block of zeros, or the same in both runs
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
            tally.add(file.kind, f"{damage.__name__} at {share:.3f} of {file.path.name}", outcome(file.read, lambda r: content(r) == right))
    file.path.write_bytes(old)
    os.utime(file.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content(file.read()) == right

def main(places: int) -> int:
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        files = kept_files(Path(folder))
        with mock.patch("gpvae.study.store.time.sleep", lambda seconds: None): # no other process is writing
            for file in files: damage_file(file, places, tally)
    print(f"{len(files)} files, {len(DAMAGES)} kinds of damage, {places} places each")
    return tally.report("damaged file")
