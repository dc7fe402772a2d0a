"SIGKILL at random moments of training, evaluation, timing and saving; resumed each time, the end has the same bits and nothing is left over."
import dataclasses
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from faults import CLEAR, SILENT, TRACEBACK, Tally
from gpvae.study.reproduce import time_missing
from gpvae.study.run import TIMES, RunResult, run
from gpvae.study.run import run_folder as folder_of
from gpvae.study.store import Store
from gpvae.train import load_checkpoint
from test_resume import NOT_OF_THE_RESULT, result
from test_resume import SPEC as LONG

SECONDS = 330. # then no new kill
EPOCHS = 10
SPEC = dataclasses.replace(LONG, settings=tuple((k, EPOCHS if k == "epochs" else v) for k, v in LONG.settings))

def work(folder: Path) -> None:
    "What a page does with one run: images, training, evaluation, times, rows."
    os.environ["GPVAE_DATA"] = str(folder / "data")
    done = time_missing([run(SPEC, folder / "runs", "cpu", bar=False)], "cpu")
    Store(folder / "store").keep(done)

def start(folder: Path):
    "A process that does it, forked, so that its time is not that of importing torch."
    process = multiprocessing.get_context("fork").Process(target=work, args=(folder,))
    process.start()
    return process

def everything(folder: Path) -> tuple:
    "All that must be the same bits: the run, and its rows and images in the store."
    run_of, store = run_folder(folder), Store(folder / "store")
    rows = store.runs()
    lost = [*NOT_OF_THE_RESULT, *TIMES]
    images = {k: v.tobytes() for k, v in store.images(rows).items()}
    times = [k for k in TIMES if not RunResult.open(run_of).metrics[k] > 0]
    return *result(run_of), rows.drop(columns=lost).to_csv(), store.modes().to_csv(), images, times

def run_folder(folder: Path) -> Path:
    os.environ["GPVAE_DATA"] = str(folder / "data")
    return folder_of(SPEC, folder / "runs")

def left_over(folder: Path) -> list[str]:
    "Temporary files and folders that nothing took away; locks stay."
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.startswith((".", "tmp")) and p.name != ".lock"]

def where(folder: Path) -> str:
    "How far a killed process has come."
    if not list((folder / "data").glob("prepared/digits*")): return "preparing images"
    at, checkpoint = run_folder(folder), run_folder(folder) / "checkpoint.safetensors"
    if not checkpoint.exists() or len(load_checkpoint(checkpoint)[1]["history"]) < EPOCHS: return "training"
    if not (at / "metrics.json").exists(): return "evaluating"
    if not (at / "timing.json").exists(): return "timing"
    return "saving" if not (folder / "store" / "modes.csv").exists() else "after saving"

def whole(folder: Path) -> float:
    "Do the work undisturbed; its seconds."
    begin, process = time.perf_counter(), start(folder)
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - begin

def killed(folder: Path, after: float) -> int:
    "Kill the work after so many seconds; the exit code."
    process = start(folder)
    process.join(after)
    process.kill()
    process.join()
    return process.exitcode

def differences(folder: Path, expected: tuple) -> str:
    "What is wrong with work that came to its end."
    parts = ("metrics", "history", "numbers of images", "weights", "rows", "modes", "images of the store", "times that were not measured")
    unlike = [name for name, a, b in zip(parts, everything(folder), expected, strict=True) if a != b]
    return "; ".join([f"{name} differ" for name in unlike] + [f"{name} is left over" for name in left_over(folder)])

def main(kills: int) -> int:
    tally, rng, hits, done, end = Tally(), random.Random(0), Counter(), 0, time.perf_counter() + SECONDS
    with tempfile.TemporaryDirectory() as name:
        base, number, at = Path(name), 0, []
        whole(base / "warm")
        seconds, expected = whole(base / "whole"), everything(base / "whole")
        while done < kills and time.perf_counter() < end:
            folder = base / str(number)
            folder.mkdir(exist_ok=True)
            early = not at and rng.random() < 0.3 # while the images are prepared
            code = killed(folder, rng.uniform(0, 0.2 if early else seconds))
            if code == -signal.SIGKILL:
                done += 1
                at.append(where(folder))
                hits[at[-1]] += 1
                if rng.random() < 0.8: continue # killed again, before it is let finish
                whole(folder)
            elif code != 0:
                tally.add("work that was resumed", f"{number}", (TRACEBACK, f"exit code {code}"))
                break
            if not at: continue
            wrong = differences(folder, expected)
            found = (SILENT, wrong) if wrong else (CLEAR, "") # the same bits
            for moment in at: tally.add(moment, f"work {number}", found)
            number, at = number + 1, []
        if at:
            whole(folder)
            wrong = differences(folder, expected)
            for moment in at: tally.add(moment, f"work {number}", (SILENT, wrong) if wrong else (CLEAR, ""))
    print(f"{done} kills of {kills} asked for; 'clear error' counts those after which the work ended with the same bits and nothing left over")
    return tally.report("killed while at")
