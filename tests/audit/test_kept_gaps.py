"The committed gaps are whole."
from pathlib import Path

import numpy as np
import pytest

from gpvae.study.gap_tables import MeasuredRun
from gpvae.study.store import Store

STORE = Store(Path(__file__).parents[2] / "nbs" / "results")
ROWS = STORE.table("gaps")


def test_every_measured_run_has_a_row():
    assert ROWS["run"].is_unique and set(ROWS["run"]) <= set(STORE.table("runs")["run"])
    assert {path.stem for path in (STORE.folder / "gaps").glob("*.npz")} == set(ROWS["run"])


@pytest.mark.parametrize("run", ROWS["run"])
def test_committed_gaps_are_whole(run):
    row = ROWS.set_index("run").loc[run]
    measured = MeasuredRun(row, STORE.arrays(run, "gaps"))
    gaps = measured.gaps()
    assert len(gaps.elbo) >= 2 and (gaps.total > -1).all() and (gaps.ess >= 1 - 1e-3).all()
    assert abs(measured.split("test")["iwae_1.0"].mean() - row["iwae_1.0"]) < 0.01
    assert all(np.isfinite(values).all() for values in measured.scores().values())
