"""Rows, per-image numbers and small pictures of finished runs, in files small enough to commit.

`runs.csv`, `modes.csv` and `gaps.csv` hold one row a run, `runs/<id>.npz` and `gaps/<id>.npz` its arrays. Two
processes that keep at once lose nothing, and reading verifies what was written."""
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from gpvae.checks import InputError, require
from gpvae.files import locked, open_folder, read_arrays, reading, write_arrays, write_atomically
from gpvae.study.run import RunResult

N_IMAGES = 5000  # test images whose numbers are kept of each run
KEYS = {"runs": ["run", "spec"], "modes": ["run", "mode"], "gaps": ["run"]}
ORDER = ["dataset", "n_train", "likelihood", "z_dim", "method", "seed", "settings", "parent"]
TEXT = dict.fromkeys(["run", "spec", "commit", "settings", "parent", "checksum", "weights", "machine"], str)
COMPARABLE = ("dataset", "checksum", "likelihood", "binarisation", "z_dim", "n_train", "n_test", "protocol")


class Store:
    "The results files of a folder."

    def __init__(self, folder: str | Path | None = None  # None: GPVAE_RESULTS, else ./results
                 ):
        folder = folder or os.environ.get("GPVAE_RESULTS") or "results"
        self.folder = Path(folder).expanduser().absolute()

    def table(self, name: str) -> pd.DataFrame:  # one of KEYS
        "A table of the store; empty where nothing was kept yet, `InputError` where a kept file is lost."
        path = self.folder / f"{name}.csv"
        if not self.folder.is_dir():
            return pd.DataFrame(columns=KEYS[name])
        with locked(self.folder, wait=60):  # nobody writes the file and its checksum meanwhile
            return self.read_table(path)

    def read_table(self, path: Path) -> pd.DataFrame:
        "The table of a file, verified; to be called under the lock."
        expected = self.checksums().get(path.name, [])
        if not path.exists():
            require(not expected, f"{path} is lost: restore it, or remove its line from SHA256SUMS beside it")
            return pd.DataFrame(columns=KEYS[path.stem])
        content = path.read_bytes()
        same = hashlib.sha256(content).hexdigest() in expected
        require(same, f"{path} has not the checksum of SHA256SUMS beside it: restore both files, or, if the "
                "change is yours, run `sha256sum *.csv > SHA256SUMS` there")
        with reading(path):
            return parse_table(content).copy()

    def checksums(self) -> dict[str, list[str]]:  # file -> SHA-256; two while the file is being replaced
        path, sums = self.folder / "SHA256SUMS", {}
        for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
            digest, _, name = line.partition("  ")
            sums.setdefault(name, []).append(digest)
        return sums

    def write_checksums(self, sums: dict[str, list[str]]) -> None:
        "Write `SHA256SUMS`."
        text = "".join(f"{digest}  {name}\n" for name in sorted(sums) for digest in sums[name])
        write_atomically(self.folder / "SHA256SUMS", lambda draft: draft.write_text(text))

    def arrays(self, run: str, kind: str = "runs"  # runs or gaps
               ) -> dict[str, np.ndarray]:         # by name; empty where none are kept
        "Numbers of the images of a run (nats), its history and its pictures."
        path = self.folder / kind / f"{run}.npz"
        if not path.exists():
            return {}
        arrays, about = read_arrays(path)
        require(about.get("run") == run, f"{path} belongs to run {about.get('run')}: restore the file")
        return {k: unpack(v) for k, v in arrays.items()}

    def history(self, run: str) -> pd.DataFrame:
        "The learning curves of a run, one line an epoch; empty where they are not kept."
        arrays = self.arrays(run)
        start = "history_"
        return pd.DataFrame({k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)})

    def keep(self, results: Iterable[RunResult],
             pictured: Iterable[str] = ()  # ids of the runs whose pictures a page shows, besides those kept
             ) -> None:
        "Save finished runs, instead of older rows of the same runs."
        results, pictured = list(results), set(pictured)
        with self.writing():
            for result in results:
                run = result.row["run"]
                arrays = pack_run(result, run in pictured or "samples" in self.arrays(run))
                write_arrays(self.folder / "runs" / f"{run}.npz", arrays, {"run": run})
            self.keep_rows("runs", [result.row for result in results])
            self.keep_rows("modes", [row for result in results for row in result.modes])

    def keep_gaps(self, row: dict[str, object], arrays: dict[str, np.ndarray]  # by `<split>_<name>`
                  ) -> None:
        "Save the gaps of a run, instead of older ones."
        with self.writing():
            write_arrays(self.folder / "gaps" / f"{row['run']}.npz", arrays, {"run": row["run"]})
            self.keep_rows("gaps", [row])

    @contextmanager
    def writing(self) -> Iterator[None]:
        "Hold the lock of the store; what a killed process left half written is removed."
        open_folder(self.folder, "pass --out")
        with locked(self.folder, wait=60):
            for name in ("runs", "gaps"):
                open_folder(self.folder / name, "pass --out")
            for pattern in (".[0-9]*.csv", ".[0-9]*.SHA256SUMS", "*/.[0-9]*.npz"):
                for draft in self.folder.glob(pattern):
                    draft.unlink()
            yield

    def keep_rows(self, name: str, rows: list[dict]) -> None:
        "Merge rows into a table; to be called while writing."
        if not rows:
            return
        path = self.folder / f"{name}.csv"
        old, new = self.read_table(path).astype(object), pd.DataFrame(rows, dtype=object)
        table = pd.concat([old, new], ignore_index=True) if len(old) else new
        table = table.drop_duplicates(KEYS[name], keep="last")
        table = table.sort_values([*(c for c in ORDER if c in table), *KEYS[name]], ignore_index=True,
                                  key=lambda column: column.astype(str).str.zfill(12))
        content = table.to_csv(index=False).encode()
        sums, new = self.checksums(), [hashlib.sha256(content).hexdigest()]
        self.write_checksums(sums | {path.name: sums.get(path.name, []) + new})
        write_atomically(path, lambda draft: draft.write_bytes(content))
        self.write_checksums(sums | {path.name: new})


@lru_cache(4)
def parse_table(content: bytes) -> pd.DataFrame:
    "The table of a CSV file; the same bytes are parsed once."
    table = pd.read_csv(io.BytesIO(content), dtype=TEXT)
    return table.assign(**{c: table[c].fillna("") for c in ("settings", "parent") if c in table})


def pack(values: Float[np.ndarray, "n"]) -> np.ndarray:
    "Nats of images as 64ths in 16-bit integers where they fit, else as float32."
    steps = np.round(64 * values[:N_IMAGES].astype(float))
    fits = np.isfinite(steps).all() and (np.abs(steps) < 2**15).all()
    return steps.astype(np.int16) if fits else (steps / 64).astype(np.float32)


def unpack(values: np.ndarray) -> np.ndarray:
    "What `pack` was given, to 1/128 nat."
    return values.astype(np.float32) / 64 if values.dtype == np.int16 else values


def pack_run(result: RunResult, pictured: bool) -> dict[str, np.ndarray]:
    "The arrays of a run that are kept."
    names = ("elbo", "iwae", "iwae_widened", "log_px")
    arrays = {k: pack(v) for k, v in result.per_image.items() if k in names}
    columns = pd.DataFrame(result.history)
    arrays |= {f"history_{k}": columns[k].to_numpy(np.float32) for k in columns if k != "seconds"}
    return arrays | (result.pictures if pictured else {})


def check_comparable(rows: pd.DataFrame, but: tuple[str, ...] = ()  # columns that may differ
                     ) -> None:
    "Refuse rows that no table may mix, and name the difference."
    for column in (c for c in COMPARABLE if c in rows and c not in but):
        values = rows[column].astype(str).unique()
        if len(values) > 1:
            raise InputError(f"rows with {column} {values[0]} and {column} {values[1]} cannot share a table: "
                             f"name the {column} in the specifications, or ask for each alone")
