"""Mutants: one small mistake in one function of the package, and the test that must notice it.

A mutant names its function and a short pattern of its source, so that a function can move within its page,
or its lines be broken anew."""
import ast
import re
from pathlib import Path
from typing import NamedTuple

class Mutant(NamedTuple):
    name: str  # what is wrong, in words
    where: str # "module:function" or "module:Class.method"; "baselines/iaf:IAF"
    test: str  # "oracles::test_x": the function test_x of tests/test_oracles.py
    right: str # a pattern of the function's source, there once; a space stands for any white space
    wrong: str # what replaces it

    @property
    def module(self): return self.where.partition(":")[0] + ".py"
    @property
    def function(self): return self.where.partition(":")[2]

class Lost(LookupError):
    "A mutant that has no place any more."

def span(source: str, function: str) -> tuple[int, int]:
    "First and last character of a function, method or class in the source of its module."
    body, node = ast.parse(source).body, None
    for name in function.split("."):
        named = [n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name]
        if not named:
            raise Lost(f"there is no {function}")
        node = named[-1]
        body = node.body
    ends = [0]
    for line in source.splitlines(keepends=True):
        ends.append(ends[-1] + len(line))
    return ends[min([node.lineno] + [d.lineno for d in node.decorator_list]) - 1], ends[node.end_lineno]

def mutated(source: str, m: Mutant) -> str:
    "The source of the module with the mistake in it."
    first, last = span(source, m.function)
    pattern = r"\s+".join(map(re.escape, m.right.split()))
    pattern = (
        r"\b" * bool(re.match(r"\w", m.right)) + pattern + r"\b" * bool(re.search(r"\w$", m.right))
    )  # whole words
    changed, n = re.subn(pattern, lambda _: m.wrong, source[first:last])
    if n != 1:
        raise Lost(f"{m.right!r} occurs {n} times in {m.function}")
    whole = source[:first] + changed + source[last:]
    try:
        ast.parse(whole)
    except SyntaxError as e:
        raise Lost(f"{m.wrong!r} in the place of {m.right!r} is no Python: {e.msg}") from e
    return whole

def lost(mutants: list[Mutant], package: Path, tests: Path) -> list[str]:
    "Every mutant whose module, function, pattern or test is gone, by name."
    faults = []
    for m in mutants:
        path, (stem, _, test) = package / m.module, m.test.partition("::")
        try:
            if not path.exists():
                raise Lost("there is no such module")
            mutated(path.read_text(encoding="utf-8"), m)
            file = tests / f"test_{stem}.py"
            if not file.exists() or not re.search(rf"^def {test}\(", file.read_text(encoding="utf-8"), re.M):
                raise Lost(f"there is no test {m.test}")
        except Lost as e:
            faults.append(f"{m.name} ({m.where}): {e}")
    return faults
