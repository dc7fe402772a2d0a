"""The package as a user installs it: a wheel built from the tree, in an environment with its run-time
dependencies only, where it trains and evaluates."""

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from configparser import ConfigParser
from importlib.metadata import distribution, distributions, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("nbdev fastcore execnb papermill IPython ipykernel jupyter_core jupyter_client nbformat nbconvert "
         "nbclient traitlets beartype").split()
IMPORT_ALL = """
import importlib, importlib.util, pathlib, pkgutil, sys, gpvae
assert pathlib.Path(gpvae.__file__).is_relative_to(sys.prefix), gpvae.__file__
found = [t for t in {tools!r} if importlib.util.find_spec(t)]
assert not found, f"not a run-time environment: {{found}} can be imported"
names = [m.name for m in pkgutil.walk_packages(gpvae.__path__, "gpvae.")]
for name in names: importlib.import_module(name)
print("imports without the tools:", *names)
"""

def sh(*command, **kw):
    "Run a command that finds no package but those of its environment."
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([str(c) for c in command], check=True, stdin=subprocess.DEVNULL, env=env, **kw)

def build(work):
    "A wheel from a copy of what belongs in it, so that nothing an earlier build left behind comes along."
    src = work / "src"
    shutil.copytree(ROOT / "gpvae", src / "gpvae", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "settings.ini", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, src)
    built = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", work,
                            src], capture_output=True, text=True)
    if built.returncode:
        sys.exit(built.stdout + built.stderr)
    return next(work.glob("*.whl"))

def check_files(wheel):
    "Every file of the package is in the wheel, and nothing else is."
    want = {p.relative_to(ROOT).as_posix()
            for p in (ROOT / "gpvae").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    have = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert want == have, f"missing from the wheel: {sorted(want - have)}; only there: {sorted(have - want)}"

def check_requirements():
    """What the modules import at their top is named in settings.ini; what they need only in one place is
    imported there."""
    trees = [ast.parse(p.read_text(encoding="utf-8")) for p in (ROOT / "gpvae").rglob("*.py")]
    nodes = [n for tree in trees
             for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom)) and not getattr(n, "level", 0)]
    used = {name.split(".")[0] for n in nodes
            for name in ([n.module] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names])}
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    named = {re.match(r"[\w-]+", r)[0].lower() for r in parser["DEFAULT"]["requirements"].split()}
    owners = packages_distributions()
    lost = sorted(u for u in used - set(sys.stdlib_module_names) - {"gpvae"}
                  if not named & {d.lower() for d in owners.get(u, [])})
    assert not lost, f"imported, but not among the requirements of settings.ini: {lost}"

def closure(dist):
    "The installed distributions that `dist` needs, directly and through others, without extras."
    found, todo = {}, list(map(Requirement, dist.requires or []))
    while todo:
        r = todo.pop()
        if r.name.lower() in found or (r.marker and not r.marker.evaluate({"extra": ""})):
            continue
        found[r.name.lower()] = needed = distribution(r.name)
        todo += map(Requirement, needed.requires or [])
    return found.values()

def environment(wheel, home):
    """A new environment: the wheel, and links to what it needs by its own metadata; the same files that pip
    would copy, in no time."""
    venv.create(home)
    python = home / "bin/python"
    sh(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check",
       "--no-deps", "--no-index", wheel)
    site = next(home.glob("lib/python*/site-packages"))
    for dist in closure(next(iter(distributions(name="gpvae", path=[str(site)])))):
        for name in {f.parts[0] for f in dist.files} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(dist.locate_file(name)).absolute())
    return python

def train(python, work):
    "One run on the embedded images, by the installed command."
    out = ["--runs", work / "runs", "--quiet"]
    sh(python.parent / "gpvae", "run", *out, cwd=work, stdout=subprocess.DEVNULL)
    sh(python.parent / "gpvae_run", *out, cwd=work, stdout=subprocess.DEVNULL)
    row = json.loads(next((work / "runs").rglob("metrics.json")).read_text())["row"]
    assert math.isfinite(row["elbo"]) and row["elbo"] <= row["iwae"], row
    print(f"trains and evaluates: ELBO {row['elbo']:.2f}, IWAE-{row['k']} {row['iwae']:.2f} nats per image")
    path = sh(python.parent / "gpvae", "snakefile", cwd=work, capture_output=True, text=True).stdout.strip()
    assert Path(path).is_file(), path

def main():
    with tempfile.TemporaryDirectory() as tmp:
        wheel = build(Path(tmp))
        check_files(wheel)
        check_requirements()
        python = environment(wheel, Path(tmp) / "venv")
        sh(python, "-c", IMPORT_ALL.format(tools=TOOLS), cwd=tmp)
        train(python, Path(tmp))

if __name__ == "__main__":
    main()
