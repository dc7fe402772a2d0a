"""Two lines of a table, compared: a difference with its interval, and one verdict, read from the interval.

Rows of runs come as a DataFrame with the columns line, seed and run, numbers of their images as
`{run: {name: values}}`. What an interval covers is derived on the page of the statistics."""
from collections.abc import Mapping, Sequence
from enum import Enum

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import stdtrit

from gpvae import statistics
from gpvae.checks import require
from gpvae.statistics import Interval, bootstrap, bootstrap_interval, seed_interval, spearman

LEVEL = 0.95  # of every interval that a page shows

Arrays = Mapping[str, Mapping[str, np.ndarray]]  # run -> name -> one number per image


class Verdict(Enum):
    "What an interval says of a claim."
    SUPPORTED = "supported"        # the whole interval lies on the claimed side
    CONTRADICTED = "contradicted"  # the whole interval lies on the other side
    INCONCLUSIVE = "inconclusive"  # the interval holds values of both sides

    def __str__(self) -> str:
        return self.value


def verdict(interval: Interval | None,
            above: bool = True,  # is the claim that the value lies above `at`?
            at: float = 0.
            ) -> Verdict:
    "The verdict on a claim about a value; inconclusive where it has no interval."
    if interval is None or not np.isfinite([interval.low, interval.high]).all():
        return Verdict.INCONCLUSIVE
    if interval.low > at:
        return Verdict.SUPPORTED if above else Verdict.CONTRADICTED
    if interval.high < at:
        return Verdict.CONTRADICTED if above else Verdict.SUPPORTED
    return Verdict.INCONCLUSIVE


def difference_interval(a: Float[np.ndarray, "S n"], b: Float[np.ndarray, "T n"], level: float = LEVEL
                        ) -> Interval:
    "Mean of `a` minus mean of `b`: Welch over seeds and images, over images alone where both have one seed."
    (S, n), T = a.shape, len(b)
    if n > 1 and min(S, T) > 1:
        return statistics.difference_interval(a, b, level)
    if n > 1 and S == T == 1:
        return statistics.mean_interval(a[0] - b[0], level)
    groups = [of.mean(1) for of in (a, b) if len(of) > 1]  # one seed scatters as those of the other line do
    require(len(groups) > 0, "one number of each line has no interval: it needs several seeds or images")
    of_images = (a.mean(0) - b.mean(0)).var(ddof=1) / n if n > 1 else 0.
    counts = (S, T) if len(groups) == 2 else (len(groups[0]),)
    parts = [(g.var(ddof=1) / c, c - 1) for g, c in zip(groups, counts)]
    if len(groups) == 1:
        parts = [(groups[0].var(ddof=1) * (1 / S + 1 / T), counts[0] - 1)]
    variance = sum(v for v, _ in parts) + of_images
    freedom = variance**2 / max(sum(v**2 / f for v, f in [*parts, (of_images, max(n - 1, 1))]), 1e-300)
    mean, half = float(a.mean() - b.mean()), float(stdtrit(max(freedom, 1.), (1 + level) / 2) * variance**0.5)
    return Interval(mean, mean - half, mean + half, level)


def values_by_seed(rows: pd.DataFrame, arrays: Arrays, line: str,
                   name: str  # of the numbers: elbo, iwae, log_px, ...
                   ) -> dict[int, np.ndarray]:  # seed -> one number per image, nats
    "The numbers of a line, of the seeds that have them."
    runs = rows[rows["line"] == line].drop_duplicates("seed", keep="last")
    return {int(seed): arrays[run][name].astype(np.float64) for seed, run in zip(runs["seed"], runs["run"])
            if name in arrays.get(run, {})}


def stack(seeds: Sequence[np.ndarray], n: int) -> Float[np.ndarray, "seeds n"]:
    "The first n images of each seed."
    return np.stack([values[:n] for values in seeds])


def difference(rows: pd.DataFrame, arrays: Arrays, line: str, reference: str, name: str = "iwae",
               level: float = LEVEL) -> Interval | None:  # nats; None where a line has no such numbers
    "How far a line lies above the reference, over all seeds of both and the images that all of them have."
    seeds = [list(values_by_seed(rows, arrays, of, name).values()) for of in (line, reference)]
    if line == reference or not all(seeds):
        return None
    n = min(len(values) for of in seeds for values in of)
    first, second = (stack(of, n) for of in seeds)
    finite = np.isfinite(first).all(0) & np.isfinite(second).all(0)
    if finite.sum() < 2:
        return None
    return difference_interval(first[:, finite], second[:, finite], level)


def paired_difference(rows: pd.DataFrame, arrays: Arrays, line: str, reference: str, name: str = "iwae",
                      level: float = LEVEL) -> Interval | None:  # nats; None where no seed has both
    "The same where a seed of both lines has one decoder, so that seeds are paired: Student's interval."
    first, second = (values_by_seed(rows, arrays, of, name) for of in (line, reference))
    shared = [seed for seed in first if seed in second]
    if line == reference or not shared:
        return None
    n = min(len(of[seed]) for of in (first, second) for seed in shared)
    d = stack([first[s] for s in shared], n) - stack([second[s] for s in shared], n)
    low, high = seed_interval(d, level) if len(d) > 1 else bootstrap_interval(d, level=level)
    return Interval(float(d.mean()), low, high, level)


def best_and_ties(rows: pd.DataFrame, arrays: Arrays, name: str = "iwae"  # a column, and numbers of images
                  ) -> list[str]:                                         # the best first
    "The line with the highest mean, and those that are not significantly lower."
    means = rows.groupby("line", sort=False)[name].mean().dropna()
    if not len(means):
        return []
    best = means.idxmax()
    gaps = {line: difference(rows, arrays, line, best, name) for line in means.index if line != best}
    tied = [line for line, gap in gaps.items() if gap is not None and verdict(gap) != Verdict.CONTRADICTED]
    return [best, *tied]


def rank_correlation(score: Float[np.ndarray, "N"], gap: Float[np.ndarray, "N"], draws: int = 500,
                     level: float = LEVEL) -> Interval:
    "Spearman's rank correlation with its interval over images."
    return bootstrap(spearman, score, gap, n=draws, level=level)


def rank_margin(score: Float[np.ndarray, "N"], rival: Float[np.ndarray, "N"], gap: Float[np.ndarray, "N"],
                draws: int = 500, level: float = LEVEL) -> Interval:
    "How much better one score ranks the gaps than another does, both resampled together."
    require(len(score) == len(rival) == len(gap), "scores and gaps must be of the same images")
    margin = lambda a, b, g: spearman(a, g) - spearman(b, g)  # noqa: E731
    return bootstrap(margin, score, rival, gap, n=draws, level=level)
