"Run `nbdev_test`, and hold every page to 20 seconds and all of them to four minutes."
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EACH, ALL = 20, 240  # seconds

def slow(output, took):
    "What was too slow, from the lines `name.ipynb: 3 secs` that `--timing` prints."
    times = re.findall(r"^(\S+\.ipynb): (\d+) secs$", output, flags=re.M)
    faults = [f"{name} took {seconds} s, more than {EACH}" for name, seconds in times if int(seconds) > EACH]
    return faults + ([f"all pages took {took:.0f} s, more than {ALL}"] if took > ALL else [])

def main():
    start, lines = time.monotonic(), []
    command = ["nbdev_test", "--do_print", "--timing", "--n_workers", "2"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode: sys.exit(process.returncode)
    if faults := slow("".join(lines), time.monotonic() - start): sys.exit("\n".join(faults))

if __name__ == "__main__": main()
