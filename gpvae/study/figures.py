"""Each figure is a function of data and an axis, in one style; `panel` makes a picture of a page.

A panel is 4 inches wide, as wide as a telephone, and wider screens show several side by side."""
import base64
import html
import io
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image

from gpvae.study.config import merge_settings
from gpvae.study.studies import Results
from gpvae.study.tables import parts

MAX_CURVES = 8  # of one axis: colours that can be distinguished
ROW = """<div class="panels" style="display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start">\
%s</div>"""
FIGURE = "<figure style='margin: 0'><figcaption>%s</figcaption>%s</figure>"


def style() -> AbstractContextManager:  # for `with style(): …`
    "The package's matplotlib style."
    return plt.style.context(str(files("gpvae.study") / "gpvae.mplstyle"))


def new_panel(height: float = 2.8,  # inches
              title: str = ""
              ) -> Axes:
    "An axis of a figure of its own; to be called within the style."
    fig = Figure(figsize=(plt.rcParams["figure.figsize"][0], height))
    ax = fig.subplots()
    ax.set_title(title)
    return ax


def panel(ax: Axes, alt: str  # what the figure shows, for those who do not see it
          ) -> str:           # HTML
    "The figure of an axis as an image; the same data give the same bytes."
    file = io.BytesIO()
    ax.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return image(file.getvalue(), "image/svg+xml", alt)


def image(content: bytes, kind: str, alt: str,
          look: str = "max-width: 100%; height: auto; background: white"  # style of the element
          ) -> str:                                                       # HTML
    "An image of a page, embedded."
    source = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(alt)}" style="{look}" src="data:{kind};base64,{source}">'


def row(panels: Iterable[str]) -> object:  # None for none
    "Panels side by side, one below the other where the page is narrow."
    panels = list(panels)
    from IPython.display import HTML
    return HTML(ROW % "\n".join(panels)) if panels else None


def show(panels: Iterable[str]) -> None:
    "Display panels in a row; nothing for none."
    shown = row(panels)
    if shown is not None:
        from IPython.display import display
        display(shown)


def named(heading: Mapping[str, object]) -> str:  # "z = 20"
    "What a part of some results is of."
    return ", ".join(f"{k} = {v}" for k, v in heading.items())


def image_grid(x: UInt8[np.ndarray, "N C H W"], columns: int, alt: str) -> str:  # HTML
    "Images in rows, pixels as they are, and shown twice as large."
    N, C, H, W = x.shape
    rows = -(-N // columns)
    canvas = np.full((rows * (H + 1) + 1, columns * (W + 1) + 1, C), 128, np.uint8)
    for i, pixels in enumerate(x):
        r, c = divmod(i, columns)
        top, left = r * (H + 1) + 1, c * (W + 1) + 1
        canvas[top:top + H, left:left + W] = pixels.transpose(1, 2, 0)
    canvas = 255 - canvas[..., 0] if C == 1 else canvas
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG", optimize=True)
    width = min(560, canvas.shape[1] * max(1, round(384 / canvas.shape[1])))
    look = f"width: {width}px; max-width: 100%; image-rendering: pixelated"
    return image(file.getvalue(), "image/png", alt, look)


def pictures(results: Results) -> object:
    "Samples, and test images above their reconstructions, of the first run of each line that has pictures."
    shown = []
    for heading, part in parts(results):
        for line in part.lines:
            kept = [part.arrays[run] for run in part.rows.loc[part.rows["line"] == line, "run"]]
            arrays = next((a for a in kept if "samples" in a), None)
            if arrays is None:
                continue
            name = f"{line}, {named(heading)}" if heading else line
            both = np.concatenate([arrays["images"], arrays["reconstructions"]])
            samples = image_grid(arrays["samples"], 8, f"{name}: images drawn from the prior")
            pairs = image_grid(both, len(both) // 2, f"{name}: test images above, reconstructions below")
            shown += [FIGURE % (html.escape(f"{name}: samples"), samples),
                      FIGURE % (html.escape(f"{name}: images and reconstructions"), pairs)]
    return row(shown)


def likelihoods(rows: pd.DataFrame, lines: Iterable[str],  # from top to bottom
                ax: Axes, column: str = "iwae", label: str = "IWAE") -> None:
    "One line per method, one point per seed, a bar at the mean; nats per image, right is better."
    lines = [line for line in lines if rows.loc[rows["line"] == line, column].notna().any()]
    for i, line in enumerate(lines):
        values = rows.loc[rows["line"] == line, column]
        ax.plot(values, np.full(len(values), i), "o", color="C0", ms=5, alpha=.7)
        ax.plot([values.mean()] * 2, [i - .3, i + .3], "k", lw=1.2)
    ax.set(yticks=range(len(lines)), yticklabels=lines, ylim=(len(lines) - .5, -.5))
    ax.set_xlabel(f"{label}, nats per image")
    ax.locator_params(axis="x", nbins=4)


def by_family(lines: Iterable[str]) -> dict[str, list[str]]:  # "sa" -> ["sa-1", "sa-2"]
    "Lines by family, in their order; one without a number is a family of its own."
    families: dict[str, list[str]] = {}
    for line in lines:
        family, _, size = line.rpartition("-")
        families.setdefault(family if size.isdigit() else line, []).append(line)
    return families


def over_costs(rows: pd.DataFrame, lines: Iterable[str],  # in the order of the legend
               ax: Axes, column: str = "elbo", label: str = "ELBO") -> None:
    "One colour per family, a point per method at the means over its seeds; nats per image, up is better."
    means = rows.groupby("line")[["infer_ms_batch", column]].mean().dropna()
    for i, (family, names) in enumerate(by_family(m for m in lines if m in means.index).items()):
        points, color = means.loc[names], plt.get_cmap("tab10")(i % 10)
        several = len(names) > 1
        ax.plot(points["infer_ms_batch"], points[column], "o-" if several else "s", ms=5, lw=1, color=color,
                label=family if several else names[0])
        for name, point in (points.iterrows() if several else ()):
            ax.annotate(name.rpartition("-")[2], point, xytext=(3, 3), textcoords="offset points", fontsize=9)
    ax.set(xscale="log", xlabel="posterior of 128 images, ms", ylabel=f"{label}, nats per image")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    legend_above(ax)


def legend_above(ax: Axes) -> None:
    "A legend of three columns over the axis."
    if ax.get_legend_handles_labels()[0]:
        ax.figure.legend(loc="outside upper left", ncols=3)


def curves_of(part: Results) -> dict[str, pd.DataFrame]:  # columns epoch, seconds, elbo, valid_elbo
    "The learning curves of the first run of each line that has them, the reference first; eight at most."
    specs, curves = {s.text(): s for s in part.study.specs}, {}
    for line in sorted(part.lines, key=lambda line: line != part.study.reference)[:MAX_CURVES]:
        for _, run in part.rows[part.rows["line"] == line].iterrows():
            history = part.store.history(run["run"])
            if "valid_elbo" in history:
                batch = merge_settings(specs[run["spec"]])[0].train.batch_size
                epochs = np.arange(1, len(history) + 1)
                seconds = epochs * -(-run["n_train"] // batch) * run.get("step_ms", np.nan) / 1000
                curves[line] = history.assign(epoch=epochs, seconds=seconds)
                break
    return curves


def learning_curves(curves: Mapping[str, pd.DataFrame],  # line -> columns epoch, seconds, valid_elbo
                    ax: Axes, over: str = "epoch"        # or seconds
                    ) -> bool:                           # is anything drawn?
    "Validation bound after the first tenth of the epochs, over epochs or the time of their steps; nats."
    for name, curve in curves.items():
        shown = curve[(curve["epoch"] > 0.1 * len(curve)) & curve[over].notna()]
        if len(shown):
            ax.plot(shown[over], shown["valid_elbo"], lw=1.2, label=name)
    ax.set(xlabel="epoch" if over == "epoch" else "time of the training steps, s",
           ylabel="validation ELBO, nats per image")
    legend_above(ax)
    return bool(ax.lines)


def over_sizes(rows: pd.DataFrame, lines: Iterable[str],  # in the order of the legend
               ax: Axes, column: str = "iwae", label: str = "IWAE") -> None:
    "One line per method, one point per run, over the number of training images; nats, up is better."
    for i, line in enumerate(line for line in lines if (rows["line"] == line).any()):
        of_line = rows[rows["line"] == line]
        ax.plot(of_line["n_train"], of_line[column], "o", ms=4, alpha=.5, color=f"C{i}")
        ax.plot(of_line.groupby("n_train")[column].mean(), color=f"C{i}", label=line)
    ax.set(xscale="log", xlabel="training images", ylabel=f"{label}, nats per image")
    legend_above(ax)


def gap_bars(table: pd.DataFrame,  # one line per method: columns approximation, amortization, error; nats
             ax: Axes) -> None:
    "Stacked parts of the gap, with the error bar of their sum. A hatched part is negative and reaches back."
    y, first, second = np.arange(len(table)), table["approximation"], table["amortization"]
    ax.barh(y, first, height=.6, label="approximation", color="C0")
    for bar, part in zip(ax.barh(y, second, left=first, height=.6, label="amortization", color="C1"), second):
        if part < 0:
            bar.set(facecolor="white", edgecolor="C1", hatch="////")
    ax.errorbar(first + second, y, xerr=table["error"], fmt="none", ecolor="k", capsize=3)
    ax.set(yticks=y, yticklabels=table.index, ylim=(len(table) - .5, -.5), xlabel="gap, nats per image")
    legend_above(ax)


def deciles(tables: Mapping[str, pd.DataFrame],  # score -> lines of `by_decile`
            ax: Axes) -> None:
    "Mean gap by decile of each score, with standard errors."
    middle = (len(tables) - 1) / 2
    for i, (name, t) in enumerate(tables.items()):
        x = t.index + .12 * (i - middle)
        ax.errorbar(x, t["gap"], t["error"], fmt="o-", ms=4, capsize=2, lw=1, label=name)
    ax.set(xticks=range(1, 11), xlabel="decile of the score", ylabel="amortization gap, nats")
    legend_above(ax)
