"""The claims of the paper beside everything that a store holds: one table a claim, one verdict a line.

A setting is what one table may hold: images, a likelihood, a number of latents and of training images."""
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from gpvae.data import CHOICES
from gpvae.statistics import Interval, difference_interval
from gpvae.study.compare import Verdict, difference, values_by_seed, verdict
from gpvae.study.config import RunSpec
from gpvae.study.gap_tables import GAPS, HOW, PROCESS, measured_runs, rankings
from gpvae.study.methods import METHODS
from gpvae.study.store import Store
from gpvae.study.studies import SET_TITLES, Results, Study, preset_studies
from gpvae.study.tables import count_seeds, frame, number, parts, with_interval

METHOD, CONTROL = "gpvae", "gpvae-mean"  # what the claims are about, and the same network without randomness
RIVALS = {"VAE": ("vae",), "semi-amortized": ("sa",), "flow": ("iaf", "hf"), "mixture": ("me", "rme")}
SCORE = "doubt"                          # the variance of the functions in nats
RANKS = dict(zip(HOW, ("ranks it", "adds to the free scores")))  # columns of verdicts

Settings = dict[str, Results]


def claims_study() -> Study:
    "All runs of the studies that have a page, under the name of the page of the claims."
    pairs = {spec.text(): (line, spec) for make in preset_studies().values()
             for study in [make()] for line, spec in zip(study.lines, study.specs)}
    lines, specs = zip(*pairs.values())
    return Study("claims", "The claims of the paper", specs, lines)


def claim_settings(study: Study, store: Store) -> Settings:  # name -> its runs
    "The settings of a study in which the method was run; each has the latest protocol of its own."
    groups: dict[tuple, list[tuple[str, RunSpec]]] = {}
    for line, spec in zip(study.lines, study.specs):
        key = spec.dataset, spec.likelihood, spec.z_dim, spec.budget, dict(spec.settings).get("n_train")
        groups.setdefault(key, []).append((line, spec))
    settings: Settings = {}
    for pairs in groups.values():
        lines, specs = zip(*pairs)
        for _, part in parts(replace(study, specs=specs, lines=lines).results(store)):
            name = setting_name(part)
            if METHOD in part.lines and (name not in settings or len(part.rows) > len(settings[name].rows)):
                settings[name] = part
    return settings


def setting_name(part: Results) -> str:
    "The images, the likelihood where it is not the usual one of the set, latents and training images."
    first = part.rows.iloc[0]
    name, choice = SET_TITLES.get(first["dataset"], first["dataset"]), CHOICES.get(first["dataset"])
    usual = choice is not None and choice.likelihood == first["likelihood"]
    words = [name if usual else f"{name} {first['likelihood']}", f"z {first['z_dim']}"]
    return ", ".join([*words, f"{first['n_train'] / 1000:.3g}k"])


def rivals(part: Results) -> Iterator[tuple[str, str | None]]:  # kind, line; None: not run
    "The lines of a setting that the paper compares with, by kind."
    methods = part.rows.drop_duplicates("line").set_index("line")["method"]
    for kind, families in RIVALS.items():
        lines = [line for line in part.lines if METHODS[methods[line]].family in families
                 and methods[line] != "vae-dropout"]
        yield from ((kind, line) for line in lines or [None])


def quantity(part: Results, line: str) -> tuple[str, str]:  # name, and of the numbers of images
    "What a model is judged by: log p(x) where both lines have it, else IWAE."
    both = all(values_by_seed(part.rows, part.arrays, of, "log_px") for of in (METHOD, line))
    return ("log p(x)", "log_px") if both else (f"IWAE-{int(part.rows['k'].iloc[0])}", "iwae")


def likelihood_claim(settings: Settings, control: bool = False  # against the same network without randomness
                     ) -> pd.DataFrame:  # nats per image
    "The method minus every rival, and the verdict on the claim that its test likelihood is higher."
    rows = []
    for setting, part in settings.items():
        lines = rivals(part) if not control else [("control", CONTROL if CONTROL in part.lines else None)]
        for kind, line in lines:
            row = {"setting": setting, "rival": line or kind}
            if line is None:
                rows.append(row | {"difference": "not run"})
                continue
            heading, name = quantity(part, line)
            seeds = count_seeds(part, METHOD, line, name)
            interval = difference(part.rows, part.arrays, METHOD, line, name)
            value = with_interval(interval)
            if max(seeds) < 2:  # nothing says how much a model scatters
                value, interval = number(interval.mean, sign=True) if interval else "", None
            rows.append(row | {"difference": value, "higher": str(verdict(interval)), "of": heading,
                               "seeds": " and ".join(map(str, seeds))})
    return frame(rows)


def speed_claim(settings: Settings, kinds: Iterable[str] = ("semi-amortized",)) -> pd.DataFrame:
    "The time of a rival's posterior in that of the method's, and the verdict on the claim that it is longer."
    rows = []
    for setting, part in settings.items():
        for kind, line in rivals(part):
            if kind not in kinds:
                continue
            row = {"setting": setting, "rival": line or kind}
            ratio, seeds = (None, "") if line is None else time_ratio(part, line)
            if ratio is None:
                rows.append(row | {"times as long": "not run" if line is None else "not timed"})
                continue
            interval = ratio if np.isfinite(ratio.low) else None
            value, low, high = (f"{v:.1f}" for v in ratio[:3])
            rows.append(row | {"times as long": f"{value} [{low}, {high}]" if interval else value,
                               "longer": str(verdict(interval, at=1.)), "seeds": seeds})
    return frame(rows)


def time_ratio(part: Results, line: str) -> tuple[Interval | None, str]:  # None: not timed on one machine
    "Milliseconds of a batch's posterior relative to the method's, Welch over seeds on the logarithms."
    if "infer_ms_batch" not in part.rows:
        return None, ""
    rows = part.rows.dropna(subset=["infer_ms_batch"])
    ours, theirs = (set(rows.loc[rows["line"] == of, "machine"]) for of in (METHOD, line))
    if not ours & theirs:
        return None, ""
    rows = rows[rows["machine"] == min(ours & theirs)]
    ours, theirs = (np.log(rows.loc[rows["line"] == of, "infer_ms_batch"].to_numpy(float))[:, None]
                    for of in (METHOD, line))
    seeds = f"{len(ours)} and {len(theirs)}"
    if max(len(ours), len(theirs)) < 2:
        return Interval(float(np.exp(theirs.mean() - ours.mean())), np.nan, np.nan), seeds
    logs = difference_interval(theirs, ours)
    return Interval(*np.exp(logs[:3]).tolist()), seeds


def difficulty_claim(settings: Settings) -> pd.DataFrame:  # rank correlations
    "How the doubt ranks both gaps, alone and given the free scores, and the verdicts that it ranks them."
    rows = []
    for setting, part in settings.items():
        runs = measured_runs(part).get(METHOD)
        for gap in GAPS:
            row = {"setting": setting, "gap": gap}
            ranks = rankings(runs, gap) if runs else {}
            for how in HOW:
                interval = ranks.get((SCORE, how))
                row |= {how: with_interval(interval) or "not measured",
                        RANKS[how]: str(verdict(interval)) if interval else ""}
            rows.append(row | ({"seeds": len(runs), "images": len(runs[0].gaps().elbo)} if runs else {}))
    return frame(rows)


def count_verdicts(columns: Mapping[str, pd.Series]) -> pd.DataFrame:  # claim -> its verdicts
    "How often each verdict was reached, one line a claim."
    return pd.DataFrame({claim: {str(v): int((cells == str(v)).sum()) for v in Verdict}
                         for claim, cells in columns.items()}).T.rename_axis("claim")


assert METHOD in METHODS and CONTROL in METHODS and SCORE in PROCESS
