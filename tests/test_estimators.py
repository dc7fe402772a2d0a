"Likelihoods per second: rows that say what was measured, times to a tolerance, growth in the sizes that an estimator has, and the command."
import math

import pandas as pd
import pytest
import torch

from gpvae.checks import InputError
from gpvae.evaluation.likelihood import Estimator
from gpvae.study import estimators
from gpvae.study.benchmarks import _has_pythae
from gpvae.study.estimators import (_GROWING, _Pythae, _best_width, _families, _growth, _grown, _made_up, _main, _ms_to, _peak_rise, _rows_of,
                                    _sized, _slope)
from gpvae.study.run import run, run_folder
from gpvae.study.spec import RunSpec
from gpvae.study.store import Store
from toys import LinearGaussian

BRIEF = RunSpec("digits", "vae", z_dim=2, settings=(("epochs", 1), ("hidden", (8,)), ("n_test", 8)))

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    run(BRIEF, runs, "cpu", bar=False)
    return run_folder(BRIEF, runs)

@pytest.fixture
def few(monkeypatch):
    "One small estimator of each family, and a short reference."
    monkeypatch.setattr(estimators, "_REFERENCE", Estimator("curvature", 4, temperatures=10))
    made = {"IWAE, encoder": [Estimator("posterior", 2), Estimator("posterior", 200)], "annealing": [Estimator("curvature", 4, temperatures=3)]}
    monkeypatch.setattr(estimators, "_families", lambda *widths: dict(made))
    monkeypatch.setattr(estimators, "_has_pythae", lambda: False)

def test_a_row_has_what_it_says(finished, few):
    rows = pd.DataFrame(_rows_of(finished, 6))
    assert rows["family"].tolist() == ["IWAE, encoder"] * 2 + ["annealing"] and rows["size"].tolist() == [2, 200, 3]
    assert set(rows["spec"]) == {finished.name} and (rows[["ms", "error"]] > 0).all(axis=None) and (rows["images"] == 6).all()
    assert rows["lack"][0] > rows["lack"][1] # two samples lack more than two hundred

def test_every_family_grows():
    for family in _families(1.4).values():
        rows = [e.rows(20) for e in family]
        assert rows == sorted(rows) and len({e.proposal for e in family}) == 1
    assert {e.inflation for e in _families(1.4)["IWAE, encoder of another width"]} == {1.4}
    assert {e.inflation for e in _families(1.4, 2.)["IWAE, encoder after a step"]} == {2.}

def test_a_part_of_the_families_can_be_asked_for(finished, few):
    assert {r["family"] for r in _rows_of(finished, 4, only=["annealing"])} == {"annealing"}
    with pytest.raises(InputError, match="family 'anealing' is unknown"): _rows_of(finished, 4, only=["anealing"])

@pytest.mark.skipif(not _has_pythae(), reason="pythae is not installed: pip install gpvae[bench]")
def test_pythae_estimates_the_same():
    model, x = _sized("images", 3)
    with torch.no_grad(): close = (_Pythae(3000)(model, x) - Estimator("posterior", 3000)(model, x)).abs().max()
    assert close < 0.2 and torch.equal(_Pythae(100)(model, x, seed=1), _Pythae(100)(model, x, seed=1))

def test_the_width_is_the_best_of_the_validation_images():
    "Of an encoder that is far too narrow the widest; of one that is far too wide none."
    lg = LinearGaussian(orthogonal=True); x = lg.images(100).clamp(0, 1)
    with torch.no_grad():
        narrow, wide = (_best_width(lg.model(lambda x, w=w: lg.rough(x, 0., w)), x, "floats") for w in (0.3, 6.))
    assert narrow == 3. and wide == 1.

def test_time_to_a_tolerance():
    rows = pd.DataFrame({"ms": [100., 1., 10.], "lack": [-0.001, 4., 1.]})
    assert _ms_to(rows, 2.) == pytest.approx(10**0.5) and _ms_to(rows, 4.) == 1. and 10 < _ms_to(rows, 0.1) < 100
    assert _ms_to(rows[rows["ms"] < 50], 0.5) == math.inf

def test_a_size_is_changed_only_where_there_is_one():
    sampled, annealed = Estimator("posterior", 7), Estimator("curvature", 8, temperatures=5)
    assert _grown(sampled, "samples", 9) == Estimator("posterior", 9) and _grown(sampled, "temperatures", 9) is None
    assert _grown(annealed, "temperatures", 9) == Estimator("curvature", 8, temperatures=9) and _grown(annealed, "samples", 9) is None
    assert _grown(annealed, "images", 9) == annealed

def test_growth_has_every_size(monkeypatch, tmp_path):
    monkeypatch.setattr(estimators, "_AXES", {"images": (2, 3), "samples": (5,), "temperatures": (2,), "latents": (2,), "width": (9,)})
    monkeypatch.setattr(estimators, "_ROWS", (3, 4))
    monkeypatch.setattr(estimators, "_GROWING", {"a": Estimator("posterior", 5), "b": Estimator("curvature", 2, temperatures=1)})
    rows = pd.DataFrame(_growth())
    assert rows.groupby("axis").size().to_dict() == {"images": 4, "samples": 1, "temperatures": 1, "latents": 2, "width": 2, "rows": 6} and (rows["seconds"] > 0).all()
    store = Store(tmp_path)
    for _ in range(2): store.keep_growth(rows.to_dict("records"))
    assert len(store.growth()) == len(rows)

def test_the_peak_is_of_the_call():
    rise = _peak_rise(lambda: torch.ones(2**24)) # 64 MB
    assert math.isnan(rise) or 50 < rise < 90

def test_the_command_keeps_its_rows(finished, few, tmp_path, capsys):
    for _ in range(2): assert _main([str(finished), "--images", "4", "--out", str(tmp_path)]) == 0
    kept = Store(tmp_path).likelihoods()
    assert len(kept) == 3 and "log p(x)" in capsys.readouterr().out
    assert _main([]) == 2 and "nothing to measure" in capsys.readouterr().err
    assert _main([str(tmp_path / "none"), "--out", str(tmp_path)]) == 2 and "holds no finished run" in capsys.readouterr().err

def test_one_image_has_no_error(finished):
    with pytest.raises(InputError, match="images is 1"): _rows_of(finished, 1)
