"The committed benchmark, the one before it and the committed annealing are whole, of one shape, and what their page reads."
import numpy as np
import pytest

from gpvae.files import read_json
from gpvae.study.benchmarks import _BUSY, _TARGETS, _annealing_report, report, _targets_table
from gpvae.study.store import checkout

@pytest.fixture(scope="module")
def kept(): return read_json(checkout() / "nbs" / "results" / "benchmarks.json")

def test_there_are_four_parts(kept): assert set(kept) - {"sha256"} == {"benchmark", "before", "annealing", "pages"}

def test_the_methods_of_every_page_were_timed_in_turns(kept):
    pages = kept["pages"]
    for times in pages["turns"].values(): assert {"vae", "gpvae", "sa-4"} <= set(times) and {len(t) for t in times.values()} == {pages["rounds"]}
    assert len(pages["turns"]) >= 2 and pages["machine"]["others"] < pages["machine"]["cores"] - pages["machine"]["threads"] + _BUSY

def test_others_had_cores_of_their_own_while_it_was_measured(kept):
    machine = kept["benchmark"]["machine"]
    assert machine["others"] < machine["cores"] - machine["threads"] + _BUSY

def test_before_and_after_are_of_one_machine_and_one_size(kept):
    before, after = kept["before"], kept["benchmark"]
    for key in ("device", "cores", "threads", "torch"): assert before["machine"][key] == after["machine"][key]
    assert before["sizes"] == after["sizes"] and before["data"] == after["data"] and before["machine"]["commit"] != after["machine"]["commit"]

@pytest.mark.parametrize("part", ["benchmark", "before"])
def test_every_contender_was_timed_in_every_round(kept, part):
    b = kept[part]
    times = [t for group in b["groups"].values() for t in group.values()]
    assert set(b["groups"]) == {t.group for t in _TARGETS} and {len(t) for t in times} == {b["rounds"]} and min(map(min, times)) > 0

def test_every_target_is_judged(kept):
    "But for what the kept file has not measured, which stays empty."
    met = _targets_table(kept["benchmark"])["met"]
    assert set(met) <= {"yes", "no", "undecided", ""} and (met == "").sum() <= 1 and b"torch" in report(kept["benchmark"]).encode()

def test_a_profile_adds_up_to_one(kept):
    for rows in kept["benchmark"]["profiles"].values(): assert abs(sum(r["share"] for r in rows) - 1) < 0.01

def test_the_annealing_has_a_number_for_every_image(kept):
    a = kept["annealing"]
    for key in ("log_px", "ess", "gap_log_px"): assert np.isfinite(a[key]).all() and len(a[key]) == a["images"]
    assert 0 < a["products"] < 1 and "matrix products" in _annealing_report(a)
