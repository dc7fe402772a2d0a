"The package is what the notebooks export, the notebooks are clean, README.md is what the front page says, tests/README.md what the tests say, and no module outlived its page."
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import make_map
import make_readme

ROOT = Path(__file__).resolve().parent.parent
PAGE = re.compile(r"File to edit: (\S+\.ipynb)")
SKIP = {"__pycache__", ".ipynb_checkpoints", "nbdev.yml"}

def state(root):
    "The hash of every file that nbdev may write."
    files = (p for top in ("gpvae", "nbs") for p in sorted((root / top).rglob("*")) if p.is_file() and not SKIP & set(p.parts))
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

def orphans(root):
    "Modules that no page exports: `nbdev_export` never deletes one."
    return [m for m in map(lambda p: complaint(root, p), sorted((root / "gpvae").rglob("*.py"))) if m]

def complaint(root, module):
    if module.name in ("__init__.py", "_modidx.py"): return None
    name = module.relative_to(root).as_posix()
    found = PAGE.search(module.read_text(encoding="utf-8"))
    if not found: return f"{name} names no page that exports it"
    page = (module.parent / found[1]).resolve()
    if not page.exists(): return f"{name} is exported by {found[1]}, which is gone: delete the module or bring the page back"
    dotted = ".".join(module.relative_to(root / "gpvae").with_suffix("").parts)
    if not re.search(rf"#\|\s*default_exp\s+{re.escape(dotted)}\b", page.read_text(encoding="utf-8")): return f"{name} is not what {page.name} exports: delete it"

def main():
    before = state(ROOT)
    for command in ("nbdev_clean", "nbdev_export"): subprocess.run([command], cwd=ROOT, check=True)
    after = state(ROOT)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    faults = [f"{name} changed under `nbdev_clean && nbdev_export`: commit the result" for name in changed] + orphans(ROOT)
    if faults: sys.exit("\n".join(faults))
    make_readme.main(check=True)
    make_map.main(check=True)
    print(f"{len(after)} files of the package and its notebooks agree, README.md and tests/README.md too")

if __name__ == "__main__": main()
