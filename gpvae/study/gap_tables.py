"""Tables of measured gaps: `Results` in, a DataFrame out, one part for each number of latents and of images.

Numbers of several seeds are averaged image by image; ± is the standard error over images."""
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped
from scipy.stats import rankdata

from gpvae.encoders.gp import Uncertainty
from gpvae.evaluation.gap import Gaps
from gpvae.evaluation.scores import SHIFTS, best_score, by_decile, decile_edges
from gpvae.statistics import Interval, auroc, bootstrap, mean_and_error, partial_correlation, spearman
from gpvae.study.compare import stack, stacked_difference, verdict
from gpvae.study.gaps import doubt
from gpvae.study.studies import Results
from gpvae.study.tables import duration, frame, number, parts, with_interval

PROCESS = ("doubt", *Uncertainty._fields)  # scores of random functions; any VAE has the others
OUTSIDE = (*SHIFTS, "letters")             # images that a model was not trained on
GAPS = ("amortization", "approximation")   # that a score may rank
HOW = ("alone", "given the free scores")   # a rank correlation
COLUMNS = {"amortization": "amortization", "approximation": "approximation", "total gap": "total",
           "full covariance": "approximation_full", "log p(x)": "log_px", "ELBO": "elbo"}  # of `Gaps`


class MeasuredRun(NamedTuple):
    "A run whose gaps were measured."
    row: pd.Series
    arrays: dict[str, np.ndarray]  # by <split>_<name>

    def split(self, split: str) -> dict[str, np.ndarray]:
        "The numbers of a split by name, one an image, float64; pixels stay as they are."
        start = f"{split}_"
        columns = {k.removeprefix(start): v for k, v in self.arrays.items() if k.startswith(start)}
        return {k: v.astype(float) if v.dtype == np.float32 else v for k, v in columns.items()}

    def gaps(self, split: str = "test") -> Gaps:
        "The gaps of a split; NaN where they were not measured."
        columns = self.split(split)
        return Gaps.of(columns, len(columns["elbo"]))

    def scores(self, split: str = "test") -> dict[str, Float[np.ndarray, "n"]]:
        "Scores of difficulty by name, those of random functions first; empty where there are none."
        columns = self.split(split)
        own = {"doubt": doubt(columns)} if doubt(columns) is not None else {}
        return own | {k.removeprefix("score_"): v for k, v in columns.items() if k.startswith("score_")}


def measured_runs(part: Results) -> dict[str, list[MeasuredRun]]:  # line -> its seeds
    "The measured runs of a part, in the order of the study; of a line those of its largest number of images."
    lines: dict[str, list[MeasuredRun]] = {line: [] for line in part.lines}
    gaps = part.rows[["run", "seed"]].merge(part.gaps, on="run").sort_values("seed")
    for _, row in gaps.iterrows():
        lines[row["line"]].append(MeasuredRun(row, part.store.arrays(row["run"], "gaps")))
    for line, runs in lines.items():
        images = [len(run.arrays["test_elbo"]) for run in runs]
        lines[line] = [run for run, n in zip(runs, images) if n == max(images)]
    return {line: runs for line, runs in lines.items() if runs}


def stack_gaps(runs: list[MeasuredRun], name: str, split: str = "test") -> Float[np.ndarray, "seeds n"]:
    "One part of the gaps of every seed, of the images that all have."
    return stack([getattr(run.gaps(split), name) for run in runs])


def mean_se(values: Float[np.ndarray, "n"]) -> str:
    "Mean ± standard error over images; empty where nothing was measured."
    if np.isfinite(values).sum() < 2:
        return ""
    mean, error = mean_and_error(values)
    return f"{number(mean)} ± {error:.2f}"


def measured_parts(results: Results
                   ) -> Iterator[tuple[dict[str, object], Results, dict[str, list[MeasuredRun]]]]:
    "Heading, part and measured runs of every part that has some."
    for heading, part in parts(results):
        runs = measured_runs(part)
        if runs:
            yield heading, part, runs


def by_line(results: Results, rows_of: Callable[[list[MeasuredRun]], Iterable[dict[str, object]]]
            ) -> pd.DataFrame:
    "Some rows for the measured runs of each line of each part."
    return frame([{"method": line} | heading | row for heading, _, lines in measured_parts(results)
                  for line, runs in lines.items() for row in rows_of(runs)])


def decomposition(results: Results) -> pd.DataFrame:  # nats per image
    "Likelihood, bound and gaps on test images."
    def rows_of(runs):
        cells = {column: mean_se(stack_gaps(runs, name).mean(0)) for column, name in COLUMNS.items()}
        return [cells | {"images": stack_gaps(runs, "elbo").shape[1], "seeds": len(runs)}]
    return by_line(results, rows_of)


def differences(results: Results) -> pd.DataFrame:  # nats per image
    "Every line minus the reference, and the verdict on the claim that its amortization gap is smaller."
    rows = []
    for heading, part, lines in measured_parts(results):
        reference = lines.pop(part.study.reference, [])
        for line, runs in lines.items() if reference else ():
            gaps = {column: stacked_difference(*(stack_gaps(of, COLUMNS[column]) for of in (runs, reference)))
                    for column in ("amortization", "approximation", "log p(x)", "total gap")}
            smaller = verdict(gaps["amortization"], above=False)
            rows.append({"method": line} | heading | {"verdict": str(smaller)}
                        | {f"Δ {column}": with_interval(gap) for column, gap in gaps.items()}
                        | {"seeds": f"{len(runs)} and {len(reference)}"})
    return frame(rows)


def gap_parts(part: Results) -> pd.DataFrame:  # columns approximation, amortization, error; nats
    "The parts of the gap of every line, and the standard error of their sum."
    lines = {}
    for line, runs in measured_runs(part).items():
        total, first = (stack_gaps(runs, name).mean(0) for name in ("total", "approximation"))
        lines[line] = {"approximation": np.nanmean(first), "amortization": np.nanmean(total - first),
                       "error": mean_and_error(total)[1]}
    return pd.DataFrame(lines).T


def generalisation(results: Results) -> pd.DataFrame:  # nats per image
    "Likelihood, total and amortization gap of training and test images, and their difference."
    def row_of(runs, quantity):
        train, test = (stack_gaps(runs, COLUMNS[quantity], split).mean(0) for split in ("train", "test"))
        (mean, error), (other, its_error) = mean_and_error(test), mean_and_error(train)
        return {"quantity": quantity, "train": mean_se(train), "test": mean_se(test),
                "test − train": f"{number(mean - other, sign=True)} ± {np.hypot(error, its_error):.2f}"}
    shown = ("amortization", "total gap", "log p(x)")
    return by_line(results, lambda runs: [row_of(runs, quantity) for quantity in shown])


def widths(results: Results) -> pd.DataFrame:  # one column a factor; nats
    "IWAE by the factor on the proposal's variances: at 1 its value, else the paired difference to it."
    def rows_of(runs):
        row = runs[0].row
        factors = [c for c in row.index if c.startswith("iwae_") and not c.endswith("_error")]
        gains = {c: number(row[c] - row["iwae_1.0"], sign=True) for c in factors}
        cells = {c: f"{gain} ± {row[f'{c}_error']:.2f}" for c, gain in gains.items()}
        cells["iwae_1.0"] = number(row["iwae_1.0"])
        return [{"× " + c.removeprefix("iwae_"): cell for c, cell in cells.items()}]
    return by_line(results, rows_of)


def rankings(runs: list[MeasuredRun],  # the seeds of a line
             gap: str,                 # one of GAPS
             draws: int = 500          # of the bootstrap over images
             ) -> dict[tuple[str, str], Interval]:  # by score and one of HOW; without what was not measured
    "Spearman's correlation of every score with a gap of the test images, means over seeds."
    scores, target = [run.scores() for run in runs], stack_gaps(runs, gap)
    names = [name for name in scores[0] if all(name in of_run for of_run in scores)]
    free = [i for i, name in enumerate(names) if name not in PROCESS]
    process = [i for i, name in enumerate(names) if name in PROCESS]
    columns = np.array([[*(of_run[name] for name in names), gaps] for of_run, gaps in zip(scores, target)])
    columns = columns[:, :, np.isfinite(columns).all((0, 1))].transpose(2, 0, 1)  # images, seeds, columns
    if len(columns) < 3:
        return {}

    def correlations(columns: Float[np.ndarray, "N _ _"]) -> Float[np.ndarray, "_"]:
        by_seed = []
        for of_seed in columns.transpose(1, 2, 0):
            ranks = rankdata(of_seed, axis=1)
            alone = partial_correlation(ranks[:-1], ranks[-1], ranks=False)
            given = partial_correlation(ranks[process], ranks[-1], ranks[free], ranks=False)
            by_seed.append([*alone, *given])
        return np.mean(by_seed, 0)
    keys = [*((name, HOW[0]) for name in names), *((names[i], HOW[1]) for i in process)]
    return dict(zip(keys, map(Interval, *bootstrap(correlations, columns, n=draws)[:3])))


def difficulty(results: Results) -> pd.DataFrame:  # rank correlations
    "How every score ranks both gaps, alone and, for those of random functions, given the free scores."
    def rows_of(runs):
        ranks = {gap: rankings(runs, gap) for gap in GAPS}
        return [{"score": score} | {f"{gap}, {how}": with_interval(ranks[gap].get((score, how)))
                                    for gap in GAPS for how in HOW} for score in runs[0].scores()]
    return by_line(results, rows_of)


def choose_free_score(run: MeasuredRun) -> tuple[str, int]:
    "The free score that ranks the amortization gap of validation images best, and the sign it is used with."
    gap, scores = run.gaps("valid").amortization, run.scores("valid")
    finite = np.isfinite(gap)
    signs = {k: -1 if spearman(v[finite], gap[finite]) < 0 else 1 for k, v in scores.items()
             if k not in PROCESS}
    name = best_score({k: sign * scores[k] for k, sign in signs.items()}, gap)
    return name, signs[name]


def calibration(run: MeasuredRun) -> dict[str, pd.DataFrame]:  # score -> a line a tenth: gap, error, images
    "Gap by tenths of the doubt and of the best free score of test images; validation images give the edges."
    rival, sign = choose_free_score(run)
    valid, test, gap = run.scores("valid"), run.scores(), run.gaps().amortization
    tables = {}
    for name, of in (("doubt", 1), (rival, sign)):
        edges = decile_edges(of * valid[name])
        tables[name] = by_decile(of * test[name], gap, edges)
        if name == "doubt":  # in nats: one factor gives it the mean gap of validation images
            factor = float(np.nanmean(run.gaps("valid").amortization) / valid[name].mean())
            tables[name].insert(0, "expected", by_decile(test[name], factor * test[name], edges)["gap"])
    return tables


def detection(results: Results) -> pd.DataFrame:  # one column a kind of images
    "Area under the ROC curve of every score, for images that the model was not trained on."
    def rows_of(runs):
        outside = {name: runs[0].scores(name) for name in OUTSIDE}
        return [{"score": score} | {name: number(auroc(values, scores[score]))
                                    for name, scores in outside.items() if score in scores}
                for score, values in runs[0].scores().items()]
    return by_line(results, rows_of)


def doubt_sizes(results: Results) -> pd.DataFrame:  # nats per image
    "The mean doubt beside the mean amortization gap of the test images."
    def rows_of(runs):
        doubts = [run.scores().get("doubt") for run in runs]
        if doubts[0] is None:
            return []
        doubts, gaps = stack(doubts).mean(0), stack_gaps(runs, "amortization").mean(0)
        return [{"doubt": mean_se(doubts), "amortization gap": mean_se(gaps),
                 "gap / doubt": number(np.nanmean(gaps) / doubts.mean(), 1)}]
    return by_line(results, rows_of)


def measurement(results: Results) -> pd.DataFrame:
    "How the gaps were measured, and how far an upper and a lower bound on log p(x) lie apart."
    def row_of(run):
        row = run.row
        return {"seed": row["seed"], "not converged": int((~run.gaps().converged).sum()),
                "simulated": row["simulated"],
                "upper − lower bound": f"{number(row['sandwich'])} ± {row['sandwich_error']:.2f}",
                "largest": number(row["sandwich_largest"]), "temperatures": row["temperatures"],
                "chains": row["chains"], "start": row["start"],
                "time": duration(float(row.get("seconds", np.nan))), "machine": row.get("machine", ""),
                "commit": row["commit"]}
    return by_line(results, lambda runs: map(row_of, runs))


def pictures(run: MeasuredRun) -> dict[str, Shaped[np.ndarray, "N C H W"]]:
    "The easiest test images, then as many of the hardest, by what orders them; empty where none are kept."
    return run.split("pictures")
