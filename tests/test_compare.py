"Comparisons: all seeds count, images are shared, and the verdict is read from the interval that is shown."

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from gpvae.statistics import Interval
from gpvae.study.compare import (Verdict, best_and_ties, difference, paired_difference, stacked_difference,
                                 values_by_seed, verdict)

IMAGES = np.random.default_rng(0).normal(-90, 20, 500)


def made_up(**levels):
    "Rows and numbers of images: line -> nats over the common images, one a seed."
    rows = [dict(line=line, seed=s, run=f"{line}{s}", iwae=IMAGES.mean() + level)
            for line, of_line in levels.items() for s, level in enumerate(of_line)]
    return pd.DataFrame(rows), {f"{line}{s}": {"iwae": IMAGES + level} for line, of_line in levels.items()
                                for s, level in enumerate(of_line)}


@pytest.mark.parametrize("low, high, above, expected",
                         [(0.1, 0.5, True, Verdict.SUPPORTED),
                          (-0.5, -0.1, True, Verdict.CONTRADICTED),
                          (-0.1, 0.5, True, Verdict.INCONCLUSIVE),
                          (0.1, 0.5, False, Verdict.CONTRADICTED),
                          (-0.5, -0.1, False, Verdict.SUPPORTED),
                          (0.0, 1.0, True, Verdict.INCONCLUSIVE),
                          (np.nan, np.nan, True, Verdict.INCONCLUSIVE)])
def test_a_verdict_is_read_from_the_interval(low, high, above, expected):
    assert verdict(Interval((low + high) / 2, low, high, 0.95), above) is expected
    assert verdict(Interval((low + high) / 2 + 7, low + 7, high + 7, 0.95), above, at=7.0) is expected
    assert verdict(None) is Verdict.INCONCLUSIVE and str(expected) == expected.value


def test_a_difference_uses_all_seeds_of_both_lines():
    rows, arrays = made_up(vae=(0.0, 1.0, 5.0), gpvae=(2.0, 3.0))
    gap = difference(rows, arrays, "gpvae", "vae")
    t = scipy.stats.ttest_ind([2.0, 3.0], [0.0, 1.0, 5.0], equal_var=False).confidence_interval(0.95)
    assert gap.mean == pytest.approx(0.5) and (gap.low, gap.high) == pytest.approx((t.low, t.high))
    assert verdict(gap) is Verdict.INCONCLUSIVE


def test_images_that_answer_differently_widen_the_interval_of_one_seed():
    noise = np.random.default_rng(1).normal(1.0, 3.0, 500)
    gap = stacked_difference([IMAGES + noise], [IMAGES])
    low, high = scipy.stats.ttest_1samp(noise, 0.0).confidence_interval(0.95)
    assert (gap.low, gap.high) == pytest.approx((low, high))


def test_only_the_images_that_all_runs_have_are_compared():
    rows, arrays = made_up(vae=(0.0,), gpvae=(1.0,))
    arrays["gpvae0"] = {"iwae": arrays["gpvae0"]["iwae"][:40]}
    assert difference(rows, arrays, "gpvae", "vae").mean == pytest.approx(1.0)


def test_what_was_not_measured_has_no_interval():
    rows, arrays = made_up(vae=(0.0,), gpvae=(1.0, 2.0))
    arrays["gpvae1"] = {}
    assert list(values_by_seed(rows, arrays, "gpvae", "iwae")) == [0]
    for line, reference, name in (("gpvae", "vae", "log_px"), ("vae", "vae", "iwae"),
                                  ("iaf-4", "vae", "iwae")):
        assert difference(rows, arrays, line, reference, name) is None
        assert paired_difference(rows, arrays, line, reference, name) is None


def test_seeds_with_one_decoder_are_paired():
    rows, arrays = made_up(vae=(0.0, 10.0, 20.0), refitted=(1.0, 11.0, 21.1))
    paired, unpaired = (of(rows, arrays, "refitted", "vae") for of in (paired_difference, difference))
    assert paired.mean == pytest.approx(unpaired.mean) and verdict(paired) is Verdict.SUPPORTED
    assert verdict(unpaired) is Verdict.INCONCLUSIVE
    one = paired_difference(rows[rows["seed"] == 0], arrays, "refitted", "vae")
    assert one.low == pytest.approx(1.0) == one.high  # every image gains one nat


def test_the_best_line_and_those_that_are_not_significantly_lower():
    rows, arrays = made_up(vae=(0.0, 0.1, -0.1), gpvae=(5.0, 5.3, 4.8), **{"sa-4": (5.1, 4.9, 5.2)})
    assert best_and_ties(rows, arrays) == ["sa-4", "gpvae"]
    assert best_and_ties(rows, {}) == ["sa-4"]  # without numbers of images nothing is tied
    assert best_and_ties(rows.assign(log_px=np.nan), arrays, "log_px") == []
