"Write tests/README.md: which promise each file of the tests holds, in the words of its own first line."
import ast
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
HEAD = """# The tests and what they promise

`make test` runs the parts in this order: `sync`, `notebooks`, `pytest`, `audit`, `smoke`, `docs-check`, `wheel`. Each is a target of its own. `make mutants` is the part
that takes longer: it makes every mistake of `mutants/table.py` in a copy of the package, one by one, and sees the named test fail; `make test` makes a handful of them.
No test fails because a machine is slow. Facts that take less than a second stand in the notebooks beside the claim that they prove.

This table is written by `python tests/make_map.py`.
"""
GROUPS = {
    "Tests of the code (`make pytest`)": "test_*.py",
    "Audits of the committed results (`make audit`)": "audit/test_*.py",
    "Checks of the tree, the pages and the wheel (`make sync notebooks docs-check wheel`)": "*_check.py",
    "What writes other files, so that a check can compare": "make_*.py",
    "Mutants (`make mutants`)": "mutants/*.py",
    "Faults (`make faults`)": "faults/*.py",
    "What tests share": "*.py",
}

def promise(path): return " ".join(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")[0].split())

def text(tests):
    "The whole of README.md."
    parts, seen = [HEAD], set()
    for title, pattern in GROUPS.items():
        paths = [p for p in sorted(tests.glob(pattern)) if p not in seen]
        seen |= set(paths)
        rows = [f"| `{p.relative_to(tests).as_posix()}` | {promise(p)} |" for p in paths]
        if rows: parts.append("\n".join([f"## {title}\n", "| file | promise |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)

def main(check=False):
    path, new = TESTS / "README.md", text(TESTS)
    if not check: path.write_text(new, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != new: sys.exit("tests/README.md is not what the tests say of themselves: python tests/make_map.py")

if __name__ == "__main__": main(check="--check" in sys.argv[1:])
