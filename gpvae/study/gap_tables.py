"""Tables of measured gaps: `Results` in, a DataFrame out, one part for each number of latents and of images.

Numbers of several seeds are averaged image by image; ± is the standard error over images."""
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from gpvae.encoders.gp import Uncertainty
from gpvae.evaluation.gap import Gaps
from gpvae.evaluation.scores import SHIFTS, best_score, by_decile, decile_edges
from gpvae.statistics import Interval, auroc, bootstrap, mean_and_error, partial_correlation, spearman
from gpvae.study.compare import LEVEL, difference_interval, verdict
from gpvae.study.gaps import doubt
from gpvae.study.studies import Results
from gpvae.study.tables import duration, number, parts, with_interval

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


def measured_parts(results: Results
                   ) -> Iterator[tuple[dict[str, object], Results, dict[str, list[MeasuredRun]]]]:
    "Heading, part and measured runs of every part that has some."
    for heading, part in parts(results):
        runs = measured_runs(part)
        if runs:
            yield heading, part, runs


def frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    "A table of rows, the first column as its index; columns without content are left out."
    table = pd.DataFrame(rows, dtype=object)
    table = table.where(table.notna(), "")
    return table.loc[:, (table != "").any()].set_index(table.columns[0]) if rows else table


def stack(runs: list[MeasuredRun], name: str, split: str = "test") -> Float[np.ndarray, "seeds n"]:
    "One part of the gaps of every seed, of the images that all have."
    values = [getattr(run.gaps(split), name) for run in runs]
    return np.stack([v[:min(map(len, values))] for v in values])


def mean_se(values: Float[np.ndarray, "n"]) -> str:
    "Mean ± standard error over images; empty where nothing was measured."
    if np.isfinite(values).sum() < 2:
        return ""
    mean, error = mean_and_error(values)
    return f"{number(mean)} ± {error:.2f}"


def decomposition(results: Results) -> pd.DataFrame:  # nats per image
    "Likelihood, bound and gaps on test images."
    rows = []
    for heading, _, lines in measured_parts(results):
        for line, runs in lines.items():
            cells = {column: mean_se(stack(runs, name).mean(0)) for column, name in COLUMNS.items()}
            counts = {"images": stack(runs, "elbo").shape[1], "seeds": len(runs)}
            rows.append({"method": line} | heading | cells | counts)
    return frame(rows)


def differences(results: Results) -> pd.DataFrame:  # nats per image
    "Every line minus the reference, and the verdict on the claim that its amortization gap is smaller."
    rows = []
    for heading, part, lines in measured_parts(results):
        reference = lines.get(part.study.reference)
        for line, runs in lines.items() if reference else ():
            if line == part.study.reference:
                continue
            gaps = {column: difference(runs, reference, COLUMNS[column])
                    for column in ("amortization", "approximation", "log p(x)", "total gap")}
            smaller = verdict(gaps["amortization"], above=False)
            rows.append({"method": line} | heading | {"verdict": str(smaller)}
                        | {f"Δ {column}": with_interval(gap) for column, gap in gaps.items()}
                        | {"seeds": f"{len(runs)} and {len(reference)}"})
    return frame(rows)


def difference(runs: list[MeasuredRun], reference: list[MeasuredRun], name: str, level: float = LEVEL
               ) -> Interval | None:
    "A part of the gaps minus that of the reference, over the test images that both have."
    ours, theirs = stack(runs, name), stack(reference, name)
    n = min(ours.shape[1], theirs.shape[1])
    finite = np.isfinite(np.concatenate([ours[:, :n], theirs[:, :n]])).all(0)
    if finite.sum() < 2:
        return None
    return difference_interval(ours[:, :n][:, finite], theirs[:, :n][:, finite], level)


def gap_parts(part: Results) -> pd.DataFrame:  # columns approximation, amortization, error; nats
    "The parts of the gap of every line, and the standard error of their sum."
    lines = {}
    for line, runs in measured_runs(part).items():
        total, first = (stack(runs, name).mean(0) for name in ("total", "approximation"))
        lines[line] = {"approximation": np.nanmean(first), "amortization": np.nanmean(total - first),
                       "error": mean_and_error(total)[1]}
    return pd.DataFrame(lines).T


def generalisation(results: Results) -> pd.DataFrame:  # nats per image
    "Likelihood, total and amortization gap of training and test images, and their difference."
    rows = []
    for heading, _, lines in measured_parts(results):
        for line, runs in lines.items():
            for quantity in ("amortization", "total gap", "log p(x)"):
                train, test = (stack(runs, COLUMNS[quantity], split).mean(0) for split in ("train", "test"))
                (mean, error), (other, its_error) = mean_and_error(test), mean_and_error(train)
                rows.append({"method": line} | heading | {
                    "quantity": quantity, "train": mean_se(train), "test": mean_se(test),
                    "test − train": f"{number(mean - other, sign=True)} ± {np.hypot(error, its_error):.2f}"})
    return frame(rows)


def widths(results: Results) -> pd.DataFrame:  # one column a factor; nats
    "IWAE by the factor on the proposal's variances: at 1 its value, else the paired difference to it."
    rows = []
    for heading, _, lines in measured_parts(results):
        for line, (run, *_) in lines.items():
            names = [c for c in run.row.index if c.startswith("iwae_") and not c.endswith("_error")]
            own = run.row["iwae_1.0"]
            rows.append({"method": line} | heading | {
                "× " + c.removeprefix("iwae_"): number(own) if c == "iwae_1.0" else
                f"{number(run.row[c] - own, sign=True)} ± {run.row[f'{c}_error']:.2f}" for c in names})
    return frame(rows)


def ranking(runs: list[MeasuredRun],      # the seeds of a line
            score: str,
            gap: str,                     # one of GAPS
            given: tuple[str, ...] = (),  # other scores
            level: float = LEVEL, draws: int = 500
            ) -> Interval | None:         # None where it was not measured
    "Spearman's correlation of a score with a gap of the test images, given others: the mean over seeds."
    scores = [run.scores() for run in runs]
    if not all(name in of_run for of_run in scores for name in (score, *given)):
        return None
    target = stack(runs, gap).T
    columns = [np.stack([of_run[name][:len(target)] for of_run in scores], 1) for name in (score, *given)]
    columns.insert(1, target)
    finite = np.isfinite(np.concatenate(columns, 1)).all(1)
    if finite.sum() < 3:
        return None

    def over_seeds(*columns: np.ndarray) -> float:
        by_seed = np.stack(columns).transpose(2, 0, 1)
        return float(np.mean([partial_correlation(c[0], c[1], list(c[2:])) for c in by_seed]))
    return bootstrap(over_seeds, *(c[finite] for c in columns), n=draws, level=level)


def free_scores(runs: list[MeasuredRun]) -> tuple[str, ...]:
    "The scores that any VAE has."
    return tuple(name for name in runs[0].scores() if name not in PROCESS)


def difficulty(results: Results) -> pd.DataFrame:  # rank correlations
    "How every score ranks both gaps, alone and, for those of random functions, given the free scores."
    rows = []
    for heading, _, lines in measured_parts(results):
        for line, runs in lines.items():
            for score in runs[0].scores():
                cells = {f"{gap}, {how}": with_interval(ranking(runs, score, gap, given))
                         if how == HOW[0] or score in PROCESS else ""
                         for gap in GAPS for how, given in zip(HOW, ((), free_scores(runs)))}
                rows.append({"method": line} | heading | {"score": score} | cells)
    return frame(rows)


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
    rows = []
    for heading, _, lines in measured_parts(results):
        for line, (run, *_) in lines.items():
            outside = {name: run.scores(name) for name in OUTSIDE}
            for score, values in run.scores().items():
                areas = {name: number(auroc(values, scores[score])) for name, scores in outside.items()
                         if score in scores}
                rows.append({"method": line} | heading | {"score": score} | areas)
    return frame(rows)


def doubt_sizes(results: Results) -> pd.DataFrame:  # nats per image
    "The mean doubt beside the mean amortization gap of the test images."
    rows = []
    for heading, _, lines in measured_parts(results):
        for line, runs in lines.items():
            doubts = [run.scores().get("doubt") for run in runs]
            if doubts[0] is not None:
                own = np.mean([v[:min(map(len, doubts))] for v in doubts], 0)
                gap = stack(runs, "amortization").mean(0)
                rows.append({"method": line} | heading | {
                    "doubt": mean_se(own), "amortization gap": mean_se(gap),
                    "gap / doubt": number(np.nanmean(gap) / own.mean(), 1)})
    return frame(rows)


def measurement(results: Results) -> pd.DataFrame:
    "How the gaps were measured, and how far an upper and a lower bound on log p(x) lie apart."
    rows = []
    for heading, _, lines in measured_parts(results):
        for line, runs in lines.items():
            for run in runs:
                row, stopped = run.row, int((~run.gaps().converged).sum())
                rows.append({"method": line} | heading | {
                    "seed": row["seed"], "not converged": stopped, "simulated": row["simulated"],
                    "upper − lower bound": f"{number(row['sandwich'])} ± {row['sandwich_error']:.2f}",
                    "largest": number(row["sandwich_largest"]),
                    "temperatures": row["temperatures"], "chains": row["chains"], "start": row["start"],
                    "time": duration(float(row.get("seconds", np.nan))), "machine": row.get("machine", ""),
                    "commit": row["commit"]})
    return frame(rows)


def pictures(run: MeasuredRun) -> dict[str, Shaped[np.ndarray, "N C H W"]]:
    "The easiest test images, then as many of the hardest, by what orders them; empty where none are kept."
    return run.split("pictures")
