"""A copy of the package and its tests in which a mistake can be made, and a process that tests it: what is
slow to import is imported once."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent

def serve():
    """For every line of JSON with a folder and tests: pytest in a fork, answered by its exit status and
    output."""
    import tqdm # noqa: F401
    sys.dont_write_bytecode = True # a cached module could be that of another mutant
    for line in sys.stdin:
        job = json.loads(line)
        log, pid = Path(job["folder"]) / "log", os.fork()
        if pid == 0:
            work(job, log)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"status": status, "output": log.read_text()}), flush=True)

def work(job, log):
    "In the fork: run the tests of the copy against the package of the copy."
    import pytest
    with open(log, "w") as f:
        for stream in (1, 2):
            os.dup2(f.fileno(), stream)
    os.chdir(job["folder"])
    sys.path.insert(0, job["folder"])
    status = int(pytest.main(["-x", "-q", "--tb=short", "-p", "no:cacheprovider", *job["tests"]]))
    import gpvae
    print(f"tested {gpvae.__file__}", flush=True)
    os._exit(status)

class Copy:
    "A copy of the package and its tests."
    def __init__(self, folder, package):
        self.folder, skip = folder, shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, folder / "gpvae", ignore=skip)
        shutil.copytree(TESTS, folder / "tests", ignore=skip)
        env = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
                            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        self.server = subprocess.Popen([sys.executable, "-P", __file__], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, text=True, env=env)

    def close(self):
        self.server.stdin.close()
        self.server.wait()

    def run(self, tests):
        "Exit status and output of pytest."
        nodes = [f"tests/test_{t}".replace("::", ".py::") for t in tests]
        self.server.stdin.write(json.dumps({"folder": str(self.folder), "tests": nodes}) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        assert f"tested {self.folder / 'gpvae'}" in answer["output"], answer["output"]
        return answer["status"], answer["output"]

    def unnoticed(self, m):
        "Why a mutant counts as not noticed; None if an assertion of its test fails."
        from mutants import mutated
        path = self.folder / "gpvae" / m.module
        original = path.read_text(encoding="utf-8")
        path.write_text(mutated(original, m), encoding="utf-8")
        try:
            status, output = self.run([m.test])
        finally:
            path.write_text(original, encoding="utf-8")
        if status != 1:
            return f"{m.name!r} was not noticed by {m.test}, or broke more than a test:\n{output}"
        if not re.search(r"^E +(AssertionError|assert )", output, re.M):
            return f"{m.name!r} fails {m.test}, but not by an assertion:\n{output}"
        return None

if __name__ == "__main__":
    serve()
