"""`PYTHONPATH=tests python -m faults damage|kills|inputs [number] [--seconds N]`: count outcomes.

The status is 1 if any outcome is a traceback or silently wrong."""

import argparse
import importlib
import os
import sys

for name, value in dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE").items():
    os.environ.setdefault(name, value)

NUMBERS = {"damage": 60, "kills": 100, "inputs": 1}
MEANING = "places of each kind of damage and file (60); kills (100); every so-manyth input (1)"

def main() -> int:
    parser = argparse.ArgumentParser("python -m faults", description=__doc__)
    parser.add_argument("what", choices=NUMBERS)
    parser.add_argument("number", nargs="?", type=int, help=MEANING)
    parser.add_argument("--seconds", type=float,
                        help="kills: after so many seconds there are no new ones (330)")
    args = parser.parse_args()
    limit = {} if args.seconds is None else {"seconds": args.seconds}
    if limit and args.what != "kills":
        parser.error("--seconds is for kills alone")
    import torch

    torch.set_num_threads(1)
    return importlib.import_module(f"faults.{args.what}").main(args.number or NUMBERS[args.what], **limit)

if __name__ == "__main__":
    sys.exit(main())
