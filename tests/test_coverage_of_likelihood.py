"The reported error covers what an estimate lacks: the quick cases of coverage_of_likelihood.py."
import pytest

from coverage_of_likelihood import run


@pytest.mark.parametrize("name", ["one mode, Bernoulli", "two modes, z = 1", "periodic, z = 1"])
def test_the_error_covers_what_is_lacking(name):
    row = run(name, 0)
    assert row["covered"] and row["tight"], row
