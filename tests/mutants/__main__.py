"""`PYTHONPATH=tests python -m mutants [words of a name …]`: make every mistake of the table, and see its test
fail."""
import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from mutants import lost
from mutants.copies import TESTS, Copy
from mutants.table import MUTANTS

PACKAGE = TESTS.parent / "gpvae"

def main():
    parser = argparse.ArgumentParser("python -m mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutants whose name or place holds all of these")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if all(w in f"{m.name} {m.where}" for w in args.words)]
    if faults := lost(chosen, PACKAGE, TESTS):
        sys.exit("\n".join(["these mutants have no place any more:", *faults]))
    if not chosen:
        sys.exit("no mutant has such a name")
    with tempfile.TemporaryDirectory() as folder:
        faults = run(chosen, Path(folder), args.jobs)
    if faults:
        sys.exit("\n\n".join(faults) + f"\n\n{len(faults)} of {len(chosen)} mutants were not noticed")
    print(f"all {len(chosen)} mutants were noticed")

def run(chosen, folder, jobs):
    "What went wrong, one text per mutant; first, without a mistake every test must pass."
    copies, free = [Copy(folder / str(i), PACKAGE) for i in range(jobs)], SimpleQueue()
    for c in copies:
        free.put(c)
    def one(task):
        copy, start = free.get(), time.perf_counter()
        try:
            fault = task(copy)
        finally:
            free.put(copy)
        return fault, time.perf_counter() - start
    def sound(copy):
        status, output = copy.run(sorted({m.test for m in chosen}))
        return f"without a mutant not all tests pass:\n{output}" if status else None
    try:
        if fault := one(sound)[0]:
            return [fault]
        faults = []
        with ThreadPoolExecutor(jobs) as pool:
            for m, (fault, seconds) in zip(chosen,
                                           pool.map(one, [lambda c, m=m: c.unnoticed(m) for m in chosen])):
                print(f"{'NOT noticed' if fault else 'noticed':11} {seconds:5.1f} s  {m.where}: {m.name}",
                      flush=True)
                if fault:
                    faults.append(fault)
        return faults
    finally:
        for c in copies:
            c.close()

if __name__ == "__main__":
    main()
