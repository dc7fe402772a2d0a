"A few damaged files and killed processes, and every wrong input; `make faults` damages and kills more."
import subprocess
import sys
from pathlib import Path

import pytest

SHORT = {"damage": 1, "kills": 3, "inputs": 1}  # places; kills, one of them while saving; every input

@pytest.mark.parametrize("what", SHORT)
def test_a_few_faults(what):
    """In a process of its own: the hook that checks shapes in the tests would refuse a wrong input before the
    package does."""
    command = [sys.executable, "-W", "ignore", "-m", "faults", what, str(SHORT[what])]
    done = subprocess.run(command, capture_output=True, text=True, env=None, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stdout + done.stderr
