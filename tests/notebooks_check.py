"""Run `nbdev_test` over every page, and say how long each took; a slow machine fails nothing, a page that
never ends does."""
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1800 # seconds: pages that take so long together hang
SLOWEST = 5  # pages that are named at the end

def times(output):
    "Seconds of each page, from the lines `name.ipynb: 3 secs` that `--timing` prints."
    return {name: int(seconds)
            for name, seconds in re.findall(r"^(\S+\.ipynb): (\d+) secs$", output, flags=re.M)}

def summary(seconds, took):
    "The slowest pages in words."
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:SLOWEST]
    return f"{len(seconds)} pages in {took:.0f} s; the slowest: " + ", ".join(
        f"{name} {s} s" for name, s in slowest
    )

def shown(command, limit):
    """Run a command, show what it says while it says it, and stop it after `limit` seconds; its output and
    exit status."""
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        clock = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL)) # its workers too
        clock.start()
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        process.wait()
        clock.cancel()
    return "".join(lines), process.returncode

def main(command=("nbdev_test", "--do_print", "--timing", "--n_workers", "2"), limit=LIMIT):
    start = time.monotonic()
    output, status = shown(command, limit)
    took = time.monotonic() - start
    print(summary(times(output), took))
    if took >= limit:
        sys.exit(f"the pages did not end within {limit} s: the last one named above hangs")
    if status:
        sys.exit(status)

if __name__ == "__main__":
    main()
