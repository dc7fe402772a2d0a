"""Results as tables: cells are texts of three formatters, differences come from `compare`.

A part of some results is what one table may average: one number of latents and of training images."""
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from gpvae.data import CHOICES
from gpvae.statistics import Interval
from gpvae.study.compare import best_and_ties, difference, paired_difference, values_by_seed, verdict
from gpvae.study.config import merge_settings
from gpvae.study.methods import METHODS
from gpvae.study.store import check_comparable
from gpvae.study.studies import SET_TITLES, Results, refined_variants

MINUS = "\N{MINUS SIGN}"
QUANTITIES = {"log p(x)": "log_px", "ELBO": "elbo", "IWAE": "iwae"}  # the first one that is there decides
VARYING = {"n_train": "images", "z_dim": "z"}  # columns that parts differ in, and their headings


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    "A number with a true minus; empty where there is none."
    value = round(float(value), digits) + 0.  # no minus before a zero
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", MINUS) if np.isfinite(value) else ""


def mean_sd(values: Iterable[float], digits: int = 2) -> str:
    "Mean ± standard deviation over seeds; the mean alone of one seed, empty for none."
    values = pd.Series(list(values), dtype=float).dropna()
    text = number(values.mean(), digits)
    return f"{text} ± {values.std():.{digits}f}" if len(values) > 1 else text


def with_interval(interval: Interval | None, digits: int = 2) -> str:
    "Value [low, high], signed; empty where there is none."
    if interval is None:
        return ""
    value, low, high = (number(v, digits, sign=True) for v in interval[:3])
    return f"{value} [{low}, {high}]"


def duration(seconds: float) -> str:
    "A time in the unit that suits it; empty where there is none."
    if not np.isfinite(seconds):
        return ""
    for unit, size, least in (("h", 3600, 2), ("min", 60, 2), ("s", 1, 1)):
        if seconds >= least * size:
            return f"{seconds / size:.{1 if seconds < 10 * size else 0}f} {unit}"
    return f"{1000 * seconds:.3g} ms"


def parts(results: Results) -> list[tuple[dict[str, object], Results]]:  # heading -> value; its runs
    "The parts of some results that a table may average, in the order of the study; one if all are alike."
    rows = results.rows
    varying = [c for c in VARYING if c in rows and rows[c].nunique() > 1]
    keys = rows[varying].drop_duplicates().to_dict("records") if varying else [{}]
    split = [({VARYING[c]: v for c, v in key.items()}, results.where(**key)) for key in keys]
    for _, part in split:
        check_comparable(part.rows)
    return [(heading, same_images(part)) for heading, part in split] if len(rows) else []


def same_images(part: Results) -> Results:
    "With log p(x) as the mean over the images that all runs have which were annealed."
    if "n_log_px" not in part.rows or part.rows["n_log_px"].nunique() < 2:
        return part
    n = int(part.rows["n_log_px"].min())
    values = [part.arrays[run].get("log_px") for run in part.rows["run"]]
    means = [np.nan if v is None else v[:n].astype(float).mean() for v in values]
    return replace(part, rows=part.rows.assign(log_px=means, n_log_px=n))


def by_line(results: Results, row_of: Callable[[Results, str, pd.DataFrame], dict[str, object]]
            ) -> pd.DataFrame:
    "One row for each line of each part; none where `row_of` has no cells."
    rows = []
    for heading, part in parts(results):
        for line in part.lines:
            cells = row_of(part, line, part.rows[part.rows["line"] == line])
            rows += [{"method": line} | heading | cells] if cells else []
    return frame(rows)


def frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    "A table of rows, the first column as its index; columns without content are left out."
    table = pd.DataFrame(rows, dtype=object)
    table = table.where(table.notna(), "")
    return table.loc[:, (table != "").any()].set_index(table.columns[0]) if rows else table


def quantities(results: Results) -> dict[str, str]:  # heading -> name of column and numbers
    "What was measured of some runs, log p(x) first."
    rows = results.rows
    k = f"-{int(rows['k'].iloc[0])}" if "k" in rows and len(rows) else ""
    return {heading + (k if heading == "IWAE" else ""): name for heading, name in QUANTITIES.items()
            if name in rows and rows[name].notna().any()}


def facts(results: Results) -> pd.DataFrame:
    "What a page compares: images, model, budget, machine."
    rows = results.rows
    if not len(rows):
        return pd.DataFrame()
    first, seeds = rows.iloc[0], rows.groupby("line", sort=False)["seed"].nunique()
    annealed = rows["n_log_px"].min() if "n_log_px" in rows else np.nan

    def each(column):
        values = dict.fromkeys(rows[column].dropna())
        return ", ".join(f"{v:,.0f}" if isinstance(v, (int, float)) else v for v in values if v != "")

    values = {
        "image set": SET_TITLES.get(first["dataset"], first["dataset"]),
        "training images": each("n_train"),
        "test images": f"{int(first['n_test']):,}",
        "test images of log p(x)": f"{annealed:,.0f}" if annealed > 0 else "",
        "likelihood": f"{first['likelihood']}, binarisation {first['binarisation']}",
        "latent dimensions": each("z_dim"),
        "seeds of a method": f"{seeds.min()} to {seeds.max()}" if seeds.nunique() > 1 else str(seeds.max()),
        "budget": each("budget"),
        "changed settings": each("settings") if rows["settings"].nunique() == 1 else "",
        "published IWAE": number(results.study.published) if results.study.published is not None else "",
        "machine": each("machine"),
    }
    return pd.DataFrame({"value": {k: v for k, v in values.items() if v}}).rename_axis("this page")


def methods(results: Results) -> pd.DataFrame:
    "The methods of a page and what each is."
    if not len(results.rows):
        return pd.DataFrame()
    lines = results.rows.drop_duplicates("line").set_index("line")["method"]
    known = {line: METHODS[lines[line]] for line in results.lines if lines[line] in METHODS}
    return pd.DataFrame({"name": {k: m.title for k, m in known.items()},
                         "idea": {k: m.idea for k, m in known.items()}}).rename_axis("method")


def deciding(part: Results) -> tuple[str, str]:  # heading, name of column and numbers
    "The quantity that decides which line of a part is best: the first that all of its lines have."
    names = quantities(part)
    whole = (k for k, name in names.items() if part.rows.groupby("line")[name].count().all())
    heading = next(whole, next(iter(names)))
    return heading, names[heading]


def likelihoods(results: Results, bold: bool = False  # marks the best and its ties by `**`
                ) -> pd.DataFrame:
    "log p(x), the bounds, active units and the effective sample size; nats per image, ± over seeds."
    names = quantities(results)
    best: dict[str, list[str]] = {}  # part -> its best line and the ties

    def row_of(part, line, rows):
        heading, name = deciding(part)
        key = str(part.rows["run"].tolist())
        if bold and key not in best:
            best[key] = best_and_ties(part.rows, part.arrays, name)
        cells = {"seeds": len(rows)} | {k: mean_sd(rows[name]) for k, name in names.items()}
        if line in best.get(key, ()):
            cells[heading] = f"**{cells[heading]}**"
        error = rows["log_px_error"].mean() if "log_px_error" in rows else np.nan
        return cells | {"active units": mean_sd(rows["active_units"], 1), "ESS": mean_sd(rows["ess"], 1),
                        "error of log p(x)": number(error)}
    return by_line(results, row_of)


def count_seeds(part: Results, line: str, reference: str, name: str) -> list[int]:
    "How many seeds of two lines a difference is made of."
    return [len(values_by_seed(part.rows, part.arrays, of, name)) for of in (line, reference)]


def verdict_cell(gap: Interval | None, seeds: list[int]) -> str:
    "The verdict on the claim that a line is higher; none where the interval knows of one seed of each alone."
    return "" if gap is None else str(verdict(gap)) if max(seeds) > 1 else "one seed"


def verdicts(results: Results, line: str = "gpvae") -> pd.DataFrame:
    "One line minus the reference with intervals, and the verdict on the claim that it is higher."
    reference, table = results.study.reference, []
    for heading, part in parts(results):
        for quantity, name in quantities(part).items():
            gap = difference(part.rows, part.arrays, line, reference, name)
            if gap is not None:
                seeds = count_seeds(part, line, reference, name)
                table.append({"quantity": quantity} | heading
                             | {f"{line} {MINUS} {reference}": with_interval(gap),
                                f"{line} is higher": verdict_cell(gap, seeds),
                                "seeds": " and ".join(map(str, seeds))})
    return frame(table)


def differences(results: Results) -> pd.DataFrame:
    "Every line minus the reference, and the verdict on the claim that it is higher."
    names, reference = quantities(results), results.study.reference

    def row_of(part, line, rows):
        gaps = {k: difference(part.rows, part.arrays, line, reference, name) for k, name in names.items()}
        heading, name = deciding(part)
        if not any(gaps.values()):
            return {}
        seeds = count_seeds(part, line, reference, name)
        return {"is higher": verdict_cell(gaps[heading], seeds), "seeds": " and ".join(map(str, seeds)),
                "by": heading} | {f"Δ {k}": with_interval(gap) for k, gap in gaps.items()}
    return by_line(results, row_of)


def costs(results: Results) -> pd.DataFrame:
    "Times, medians over seeds, with the ratio to the reference; blank on another machine than its own."
    reference = results.study.reference
    columns = {"training step": "step_ms", "batch of 128": "infer_ms_batch", "one image": "infer_ms_one"}

    def row_of(part, line, rows):
        base = part.rows[part.rows["line"] == reference]
        machines = list(dict.fromkeys(rows["machine"]))
        home = list(dict.fromkeys(base["machine"] if len(base) else part.rows["machine"]))
        same = len(machines) == 1 and machines == home[:1]
        cells = {}
        for heading, column in columns.items():
            ms = rows[column].median() if same and column in rows else np.nan
            ratio = ms / base[column].median() if column in base and line != reference else np.nan
            cells[heading] = duration(ms / 1000) + (f" ({ratio:.2f} ×)" if np.isfinite(ratio) else "")
        cells["training"] = duration(rows["train_seconds"].median()) if same else ""
        memory = rows["peak_mb"].max() if same and "peak_mb" in rows else np.nan
        cells["memory"] = f"{memory:.0f} MB" if np.isfinite(memory) else ""
        return cells | {"machine": ", ".join(machines)}
    return by_line(results, row_of)


def timed(results: Results) -> Results:
    "The runs of the reference's machine that were timed; a figure of times shows no others."
    rows = results.rows
    if not len(rows) or "infer_ms_batch" not in rows:
        return replace(results, rows=rows[:0])
    base = rows[rows["line"] == results.study.reference]
    home = (base if len(base) else rows)["machine"].iloc[0]
    return replace(results, rows=rows[rows["infer_ms_batch"].notna() & (rows["machine"] == home)])


def modes(results: Results) -> pd.DataFrame:
    "ELBO, IWAE and effective sample size in each test-time mode."
    found = results.modes if len(results.rows) else results.rows
    if not len(found):
        return pd.DataFrame()
    found = found.merge(results.rows[["run", *VARYING]], on="run").drop_duplicates(["run", "line", "mode"])
    headings = {VARYING[c]: c for c in VARYING if found[c].nunique() > 1}
    table = [{"method": line, "mode": mode} | {h: rows[c].iloc[0] for h, c in headings.items()}
             | {"ELBO": mean_sd(rows["elbo"]), "IWAE": mean_sd(rows["iwae"]), "ESS": mean_sd(rows["ess"], 1)}
             for (line, mode, *_), rows in found.groupby(["line", "mode", *headings.values()], sort=False)]
    return pd.DataFrame(table).set_index("method")


def refined(results: Results) -> pd.DataFrame:
    "What refits and a natural-gradient step add to each line: paired by seed, for the decoder is the same."
    study = results.study
    bases = [(line, spec) for line, spec in zip(study.lines, study.specs) if spec.parent is None]
    if not bases or len(bases) > 2000:  # every specification has three variants
        return pd.DataFrame()
    pairs = [(f"{line}, {what}" if what else line, variant) for line, spec in bases
             for what, variant in ({"": spec} | refined_variants(spec)).items()]
    lines, specs = zip(*pairs)
    whole = replace(study, specs=specs, lines=lines).results(results.store)
    variants = [line for line in whole.lines if line not in study.lines]

    def row_of(part, line, rows):
        base = next((o for o in study.lines if line.startswith(f"{o}, ")), None)
        if line not in variants or base is None:
            return {}
        gaps = {f"Δ {k}": with_interval(paired_difference(part.rows, part.arrays, line, base, name))
                for k, name in quantities(part).items() if name != "log_px"}
        return {"seeds": len(rows)} | {k: mean_sd(rows[name]) for k, name in quantities(part).items()} | gaps
    return by_line(whole, row_of)


def widths(results: Results) -> pd.DataFrame:
    "The factor on the proposal's variances that validation images choose, and what it adds to IWAE."
    def row_of(part, line, rows):
        if "iwae_widened" not in rows or rows["iwae_widened"].isna().all():
            return {}
        gain = rows["iwae_widened"] - rows["iwae"]
        return {"factor": mean_sd(rows["width"], 1), "IWAE": mean_sd(rows["iwae"]),
                "IWAE, widened": mean_sd(rows["iwae_widened"]), "gain": mean_sd(gain)}
    return by_line(results, row_of)


def mixtures(results: Results) -> pd.DataFrame:
    "Mean weights of mixtures, and the nats that a latent tells of its component."
    def row_of(part, line, rows):
        told = rows["weights"].notna() if "weights" in rows else pd.Series(False, rows.index)
        if not told.any():
            return {}
        return {"weights of the first seed": rows.loc[told, "weights"].iloc[0],
                "I(component; z), nats": mean_sd(rows.loc[told, "information"])}
    return by_line(results, row_of)


def runs(results: Results) -> pd.DataFrame:
    "Every run."
    names = ["line", "z_dim", "seed", "n_train", "log_px", "log_px_error", "elbo", "iwae", "iwae_error",
             "ess", "active_units", "valid_elbo", "best_epoch", "epochs", "train_seconds", "peak_mb", "run",
             "commit"]
    rows = results.rows[[n for n in names if n in results.rows]].rename(columns={"line": "method"})
    rows = rows.loc[:, rows.notna().any()] if len(rows) else rows
    numbers = rows.select_dtypes("number").columns
    digits = {c: 0 if (rows[c].dropna() % 1 == 0).all() else 2 for c in numbers}
    texts = {c: [number(v, digits[c]) for v in rows[c].astype(float)] for c in numbers}
    return rows.assign(**texts).set_index("method") if len(rows) else rows


def schedule(results: Results) -> pd.DataFrame:
    "The settings of the first run that is shown."
    if not len(results.rows):
        return pd.DataFrame()
    spec = next(s for s in results.study.specs if s.text() == results.rows["spec"].iloc[0])
    budget, options = merge_settings(spec)
    values = {k: v for section in vars(budget).values() for k, v in vars(section).items()}
    return pd.DataFrame({"value": {k: "none" if v is None else str(v) for k, v in (values | options).items()}}
                        ).rename_axis("setting")


assert set(SET_TITLES) <= set(CHOICES)
