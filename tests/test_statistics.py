"Intervals and correlations against textbooks, and the questions that they refuse."
import numpy as np
import pytest
from scipy.stats import ttest_ind

from gpvae.checks import InputError
from gpvae.statistics import (bootstrap_draws, correlation_interval, difference_interval, may_pool,
                              mean_error, mean_interval, partial_correlation, spearman)

@pytest.fixture
def rng(): return np.random.default_rng(5)

def test_every_seed_counts_also_those_that_only_one_method_has(rng):
    a, b = rng.normal(0, 1, (3, 40)) + np.array([[0.], [2.], [4.]]), rng.normal(0, 1, (1, 40)).repeat(5, 0)
    assert np.isclose(difference_interval(a, b).mean, a.mean() - b.mean())
    assert np.isclose(difference_interval(list(a), list(b[:2])).mean, a.mean() - b[:2].mean())

def test_a_quiet_and_a_restless_method_are_not_pooled(rng):
    "Welch's interval, where the common variance would be half of the restless method's."
    restless, quiet = np.array([-3., 0., 3.]), np.array([-.01, 0., .02])
    images = rng.normal(size=30)
    welch = ttest_ind(restless, quiet, equal_var=False).confidence_interval(0.95)
    of_images = lambda seeds: [s + images for s in seeds]
    others = [[-.02, 0., .01]] * 6
    for extra in ((), others):
        assert np.allclose(difference_interval(of_images(restless), of_images(quiet), others=extra)[1:3],
                           welch)
    assert not may_pool([restless, quiet]) and may_pool([quiet, quiet + 1, np.array([0., .02, .03])])
    assert not may_pool([quiet, np.zeros(3)]) and not may_pool([quiet, np.ones(1)])

def test_pooling_takes_the_degrees_of_freedom_of_all(rng):
    a, b = np.array([[-1.], [0.], [1.1]]), np.array([[-.9], [0.], [.8]])
    others, images = [[-1., .1, 1.]] * 6, rng.normal(size=(1, 30))
    alone, pooled = (difference_interval(a + images, b + images, others=o) for o in ((), others))
    assert np.isclose((alone.high - alone.low) / (pooled.high - pooled.low), 2.78 / 2.12, rtol=0.05)

def test_far_levels_have_ends_of_their_own():
    assert [bootstrap_draws(level) for level in (0.5, 0.95, 0.99, 0.999)] == [2000, 2000, 10_000, 100_000]
    d = np.random.default_rng(0).normal(size=400)
    widths = [np.ptp(mean_interval(d, level)[1:3]) for level in (0.95, 0.99, 0.9999)]
    assert np.isclose(widths[2] / widths[0], 3.93 / 1.966, rtol=0.01) and widths[0] < widths[1] < widths[2]

def test_an_image_without_a_number_is_said():
    assert mean_error(np.array([1., 3., np.nan])) == "2.00 ± 1.00"
    assert mean_error(np.array([1., 3., -np.inf])) == "-inf ± nan"

@pytest.mark.parametrize("a, b, options, words", [
    ([], [np.zeros(4)] * 2, {}, "a has no seed"),
    ([np.zeros(1)], [np.zeros(1)], {}, "one number of each has no interval"),
    ([np.zeros(4), np.zeros(5)], [np.zeros(4)] * 2, {}, r"the seeds of a have \[4, 5\] images"),
    ([np.zeros(4)] * 2, [np.zeros(5)] * 2, {}, "a has 4 images and b 5"),
    ([np.zeros(4)] * 2, [np.full(4, np.nan)] * 2, {}, "b is not finite on 4 images"),
    ([np.zeros(4)] * 2, [np.array([0, 0, 0, -np.inf])] * 2, {}, "b is not finite on 1 images"),
    ([np.zeros(4)] * 2, [np.zeros(4)] * 2, {"level": 95}, "level is 95"),
])
def test_questions_without_an_answer(a, b, options, words):
    with pytest.raises(InputError, match=words):
        difference_interval(a, b, **options)

def test_one_seed_scatters_as_those_of_the_other_method_do(rng):
    images = rng.normal(size=(1, 40))
    for one, S in ((np.ones((1, 1)), 4), (np.zeros((1, 1)), 9)):
        several = rng.normal(size=(S, 1))
        students = ttest_ind(one[:, 0], several[:, 0]).confidence_interval(0.95)
        assert np.allclose(difference_interval(one + images, several + images)[1:3], students)
        assert np.allclose(difference_interval(one, several)[1:3], students)  # of one number a seed
    a, b = rng.normal(size=(2, 1, 40))
    assert np.allclose(difference_interval(a, b), mean_interval((a - b)[0]))

def test_equal_numbers_have_an_interval_of_no_width():
    assert difference_interval([np.ones(4)] * 2, [np.zeros(4)] * 2)[:3] == (1., 1., 1.)

def test_partial_correlations(rng):
    c = rng.normal(size=400)
    x, y, beyond = c + rng.normal(size=400), c + rng.normal(size=400), rng.normal(size=400)
    assert abs(partial_correlation(x, y, [c])) < 0.15 < 0.4 < spearman(x, y)
    assert partial_correlation(x + 2 * beyond, y + 2 * beyond, [c]) > 0.5
    by_regression = [v - np.polyval(np.polyfit(c, v, 1), c) for v in (x, y)]
    assert np.isclose(partial_correlation(x, y, [c], ranks=False), np.corrcoef(*by_regression)[0, 1])
    assert np.isclose(partial_correlation(x, y, [c, c]), partial_correlation(x, y, [c])) # collinear
    both = partial_correlation(np.stack([x, y]), beyond, [c])
    assert np.allclose(both, [partial_correlation(v, beyond, [c]) for v in (x, y)])
    assert np.isnan(partial_correlation(x, y, [np.where(c > 0, c, np.nan)]))
    assert np.isnan(partial_correlation(np.exp(c), y, [c])) and np.isnan(partial_correlation(np.ones(400), y))
    holes = np.where(np.arange(400) < 10, np.nan, y)
    interval = correlation_interval(x, holes, [c], n=200)
    assert np.isclose(interval.mean, partial_correlation(x[10:], y[10:], [c[10:]]))
    assert interval.low < interval.mean < interval.high
