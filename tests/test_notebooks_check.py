"The check of the pages: what is slow is said and fails nothing, what fails or hangs fails."
import sys
import time

import pytest

from notebooks_check import main, summary, times

def command(code): return [sys.executable, "-c", code]

def test_times_are_read_from_what_nbdev_prints():
    said = "Starting a.ipynb\n- Completed /x/nbs/a.ipynb\na.ipynb: 3 secs\nb.ipynb: 125 secs\n"
    assert times(said) == {"a.ipynb": 3, "b.ipynb": 125}
    assert summary(times(said), 127.6) == "2 pages in 128 s; the slowest: b.ipynb 125 s, a.ipynb 3 s"

def test_a_slow_page_fails_nothing(capfd):
    main(command("print('slow.ipynb: 1700 secs')"))
    assert "the slowest: slow.ipynb 1700 s" in capfd.readouterr().out

def test_a_failed_page_fails():
    with pytest.raises(SystemExit) as e:
        main(command("raise SystemExit(3)"))
    assert e.value.code == 3

def test_a_page_that_hangs_is_stopped_with_its_workers():
    start, code = (
        time.monotonic(),
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
    )
    with pytest.raises(SystemExit, match="did not end within 1 s"):
        main(command(code), limit=1)
    assert time.monotonic() - start < 50
