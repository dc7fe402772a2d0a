"""Run a check on a copy of the committed files: `python tests/committed.py tests/sync_check.py`.

Whatever a user keeps beside them is neither looked at nor changed."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

def committed(root: Path, *more: str) -> list[str]:  # paths below root
    "Files that git knows, as they are in the working tree."
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z", *more], capture_output=True, text=True)
    if listed.returncode:
        sys.exit(f"{root} is no git checkout: what is committed cannot be told")
    return [name for name in listed.stdout.split("\0") if name and (root / name).exists()]

def main(words: list[str]) -> int:  # exit status
    "Run Python in the copy."
    with tempfile.TemporaryDirectory(prefix="gpvae-") as folder:
        copy = Path(folder) / "gpvae"
        for name in committed(ROOT):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        new = committed(ROOT, "--others", "--exclude-standard")
        if new:
            print(
                f"left out: {len(new)} files that git does not know, as {new[0]}; `git add` what belongs in"
            )
        if any(part.startswith((".", "_")) for part in ROOT.parts):
            print(f"{ROOT} lies in a hidden folder: nbdev sees no notebooks there, in the copy it does")
        return subprocess.run([sys.executable, *words], cwd=copy,
                              env=os.environ | {"PYTHONPATH": str(copy)}).returncode

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
