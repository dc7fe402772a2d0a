"""Two lines of a table, compared: a difference with its 95 % interval, and one verdict, read from it.

Rows of runs come as a DataFrame with the columns line, seed and run, numbers of their images as
`{run: {name: values}}`. What an interval covers is derived on the page of the statistics."""
from collections.abc import Mapping, Sequence
from enum import Enum

import numpy as np
import pandas as pd
from jaxtyping import Float

from gpvae.statistics import Interval, bootstrap_interval, difference_interval, seed_interval

Arrays = Mapping[str, Mapping[str, np.ndarray]]  # run -> name -> one number per image
Seeds = Sequence[np.ndarray] | np.ndarray        # of each seed, one number per image


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


def stack(seeds: Seeds) -> Float[np.ndarray, "seeds n"]:
    "The numbers of several seeds, of the first images, which all of them have."
    return np.stack([values[:min(map(len, seeds))] for values in seeds])


def stacked_difference(ours: Seeds, theirs: Seeds) -> Interval | None:
    "Mean of `ours` minus mean of `theirs`, over the images that every seed has; None for fewer than two."
    both = stack([*ours, *theirs])
    both = both[:, np.isfinite(both).all(0)]
    return difference_interval(both[:len(ours)], both[len(ours):]) if both.shape[1] > 1 else None


def values_by_seed(rows: pd.DataFrame, arrays: Arrays, line: str,
                   name: str  # of the numbers: elbo, iwae, log_px, ...
                   ) -> dict[int, np.ndarray]:  # seed -> one number per image, nats
    "The numbers of a line, of the seeds that have them."
    runs = rows[rows["line"] == line].drop_duplicates("seed", keep="last")
    return {int(seed): arrays[run][name].astype(np.float64) for seed, run in zip(runs["seed"], runs["run"])
            if name in arrays.get(run, {})}


def difference(rows: pd.DataFrame, arrays: Arrays, line: str, reference: str, name: str = "iwae"
               ) -> Interval | None:  # nats; None where a line has no such numbers
    "How far a line lies above the reference, over all seeds of both and the images that all of them have."
    ours, theirs = (list(values_by_seed(rows, arrays, of, name).values()) for of in (line, reference))
    return stacked_difference(ours, theirs) if ours and theirs and line != reference else None


def paired_difference(rows: pd.DataFrame, arrays: Arrays, line: str, reference: str, name: str = "iwae"
                      ) -> Interval | None:  # nats; None where no seed has both
    "The same where a seed of both lines has one decoder, so that seeds are paired: Student's interval."
    ours, theirs = (values_by_seed(rows, arrays, of, name) for of in (line, reference))
    shared = [seed for seed in ours if seed in theirs]
    if line == reference or not shared:
        return None
    first, second = np.split(stack([of[seed] for of in (ours, theirs) for seed in shared]), 2)
    d = first - second
    return Interval(float(d.mean()), *(seed_interval(d) if len(d) > 1 else bootstrap_interval(d)))


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
