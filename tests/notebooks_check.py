"Run `nbdev_test`, and hold every page to 20 seconds and all of them to four minutes."
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EACH, ALL = 20, 240  # seconds

def times(output):
    "Seconds a page, from the lines `name.ipynb: 3 secs` that `--timing` prints."
    return {name: int(seconds) for name, seconds in re.findall(r"^(\S+\.ipynb): (\d+) secs$", output, flags=re.M)}

def faults(seconds, took):
    "What was too slow."
    return [f"{name} took {s} s, more than {EACH}" for name, s in seconds.items() if s > EACH] + ([f"all pages took {took:.0f} s, more than {ALL}"] if took > ALL else [])

def nbdev_test(*options):
    "Run it, show what it says, return its times."
    lines = []
    with subprocess.Popen(["nbdev_test", "--do_print", "--timing", *options], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode: sys.exit(process.returncode)
    return times("".join(lines))

def main():
    start = time.monotonic()
    seconds = nbdev_test("--n_workers", "2")
    took = time.monotonic() - start
    for name in [n for n, s in seconds.items() if s > EACH]:  # once more, alone: the first time pays for cold caches and its neighbour
        page = next((ROOT / "nbs").rglob(name))
        seconds |= nbdev_test("--path", str(page))
    if late := faults(seconds, took): sys.exit("\n".join(late))

if __name__ == "__main__": main()
