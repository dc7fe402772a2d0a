"""The oracles can fail: a handful of the mutants of tests/mutants, each a small mistake that the named test
must notice. `make mutants` makes them all."""

from collections import Counter
from pathlib import Path

import pytest

import gpvae
from mutants import Lost, Mutant, lost, mutated
from mutants.copies import TESTS, Copy
from mutants.table import MUTANTS

PACKAGE = Path(gpvae.__file__).parent
HANDFUL = ("KL with the wrong sign", "mean over grey pixels", "no 1/N before the weight KL",
           "log-determinant of the flow added", "log q added", "momentum against the gradient",
           "inner step downhill")

def test_every_mutant_has_its_place():
    "Module, function, pattern and test; and no two have one name."
    faults = lost(MUTANTS, PACKAGE, TESTS)
    assert not faults, "\n".join(["mutants without a place:", *faults])
    assert max(Counter(m.name for m in MUTANTS).values()) == 1

@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    c = Copy(tmp_path_factory.mktemp("mutated"), PACKAGE)
    yield c
    c.close()

def test_a_handful_is_noticed(copied):
    "Without a mistake the tests pass; with each of them its test fails."
    chosen = {m.name: m for m in MUTANTS if m.name in HANDFUL}
    assert len(chosen) == len(HANDFUL), set(HANDFUL) - set(chosen)
    status, output = copied.run(sorted({m.test for m in chosen.values()}))
    assert status == 0, output
    assert not [fault for m in chosen.values() if (fault := copied.unnoticed(m))]

def test_what_nobody_notices_is_said(copied):
    "A change that changes nothing, and one that breaks the import."
    m = next(m for m in MUTANTS if m.name == HANDFUL[0])
    assert "was not noticed" in copied.unnoticed(m._replace(wrong=m.right))
    assert "not by an assertion" in copied.unnoticed(
        m._replace(wrong=f"return 1 / 0 if True else {m.right.removeprefix('return ')}")
    )

SOURCE = """
import math

def f(x):
    y = g(x)
    return y + 1

class A:
    @property
    def f(self): return 1

    class B:
        def f(self):
            return (1 +
                    2)
"""

def test_only_its_function_changes_however_its_lines_are_broken():
    m = Mutant("", "m:A.B.f", "", "(1 + 2)", "(1 - 2)")
    assert mutated(SOURCE, m).endswith("return (1 - 2)\n") and mutated(SOURCE, m).startswith(SOURCE[:60])
    changed = mutated(SOURCE, Mutant("", "m:A.f", "", "return 1", "return 2"))
    assert changed == SOURCE.replace("self): return 1", "self): return 2")

@pytest.mark.parametrize("where, right, wrong, said",
                         [("m:h", "x", "y", "there is no h"),
                          ("m:f", "z", "y", "'z' occurs 0 times in f"),
                          ("m:f", "x", "y", "'x' occurs 2 times in f"),
                          ("m:f", "y + 1", "y +", "is no Python"),
                          ("m:f", "eturn y", "x", "occurs 0 times in f")])
def test_a_mutant_without_a_place_is_named(where, right, wrong, said, tmp_path):
    m = Mutant("the mistake", where, "oracles::test_kept", right, wrong)
    with pytest.raises(Lost, match=said.replace("+", r"\+")):
        mutated(SOURCE, m)
    (tmp_path / "m.py").write_text(SOURCE)
    (tmp_path / "test_oracles.py").write_text("def test_kept(): pass\n")
    assert said in lost([m], tmp_path, tmp_path)[0]
    assert lost([m], tmp_path, tmp_path)[0].startswith(f"the mistake ({where})")

def test_a_lost_test_or_module_is_named(tmp_path):
    (tmp_path / "m.py").write_text(SOURCE)
    (tmp_path / "test_oracles.py").write_text("def test_kept(): pass\n")
    good = Mutant("good", "m:f", "oracles::test_kept", "y + 1", "y - 1")
    bad = [good._replace(test="oracles::test_gone"), good._replace(test="nowhere::test_kept"),
           good._replace(where="n:f")]
    assert [f.rpartition(": ")[2] for f in lost([good, *bad], tmp_path, tmp_path)] == [
        "there is no test oracles::test_gone", "there is no test nowhere::test_kept",
        "there is no such module"
    ]
