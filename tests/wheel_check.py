"The package as a user installs it: built from the tree, in an environment with its run-time dependencies only, where it trains and evaluates."
import hashlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".make/wheel"  # kept: only a change of the requirements fills it anew
TOOLS = "nbdev fastcore execnb papermill IPython ipykernel jupyter_core jupyter_client nbformat nbconvert nbclient traitlets beartype".split()
IMPORT_ALL = """
import importlib, importlib.util, pathlib, pkgutil, sys, gpvae
assert pathlib.Path(gpvae.__file__).is_relative_to(sys.prefix), gpvae.__file__
found = [t for t in {tools!r} if importlib.util.find_spec(t)]
assert not found, f"not a run-time environment: {{found}} can be imported"
names = [m.name for m in pkgutil.walk_packages(gpvae.__path__, "gpvae.")]
for name in names: importlib.import_module(name)
print("imports without the tools:", *names)
"""

def sh(*command, **kw): return subprocess.run([str(c) for c in command], check=True, stdin=subprocess.DEVNULL, **kw)

def build(work):
    "A wheel from a copy of what belongs in it, so that nothing an earlier build left behind comes along."
    src = work / "src"
    shutil.copytree(ROOT / "gpvae", src / "gpvae", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "settings.ini", "README.md", "LICENSE"): shutil.copy(ROOT / name, src)
    sh(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", work, src, stdout=subprocess.DEVNULL)
    return next(work.glob("*.whl"))

def check_files(wheel):
    "Every file of the package is in the wheel, and nothing else is."
    want = {p.relative_to(ROOT).as_posix() for p in (ROOT / "gpvae").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    have = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert want == have, f"missing from the wheel: {sorted(want - have)}; only there: {sorted(have - want)}"

def environment(wheel):
    "Install the wheel; its dependencies only when they changed."
    key = hashlib.sha256(b"".join((ROOT / n).read_bytes() for n in ("settings.ini", "constraints.txt")) + sys.version.encode()).hexdigest()
    stamp, python = VENV / ".ready", VENV / "bin/python"
    fresh = not stamp.exists() or stamp.read_text() != key
    if fresh: venv.create(VENV, clear=True, with_pip=True)
    how = ["-c", ROOT / "constraints.txt"] if fresh else ["--no-deps", "--force-reinstall"]
    sh(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *how, wheel)
    stamp.write_text(key)
    return python

def train(python, work):
    "One run on the embedded images, by the installed command."
    sh(python.parent / "gpvae_run", "--dataset", "digits", "--budget", "smoke", "--method", "gpvae", "--runs", work / "runs", cwd=work)
    metrics = json.loads(next((work / "runs").rglob("metrics.json")).read_text())
    assert math.isfinite(metrics["elbo"]) and metrics["elbo"] <= metrics["iwae"], metrics
    sh(python.parent / "gpvae_reproduce", "--help", cwd=work, stdout=subprocess.DEVNULL)

def main():
    with tempfile.TemporaryDirectory() as tmp:
        wheel = build(Path(tmp))
        check_files(wheel)
        python = environment(wheel)
        sh(python, "-c", IMPORT_ALL.format(tools=TOOLS), cwd=tmp)
        train(python, Path(tmp))

if __name__ == "__main__": main()
