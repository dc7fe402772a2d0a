"Studies: which models are compared, as lists of specifications; their results are a query on the store."
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from gpvae.checks import InputError, check_kinds, choose, require
from gpvae.files import read_json, write_json
from gpvae.sources import CHOICES
from gpvae.study.config import RunSpec, merge_settings, refit_of
from gpvae.study.methods import METHODS
from gpvae.study.settings import BUDGETS, parse_setting
from gpvae.study.store import Store, check_comparable

MAX_RUNS = 10_000  # of a study
SET_TITLES = dict(digits="the digits of scikit-learn", static_mnist="static MNIST", mnist="MNIST",
                  fashion="Fashion-MNIST", omniglot="Omniglot", cifar10="CIFAR-10", svhn="SVHN",
                  celeba="CelebA")


@dataclass(frozen=True)
class Study:
    "A comparison."
    name: str                       # of its files
    title: str
    specs: tuple[RunSpec, ...]
    lines: tuple[str, ...] = ()     # of its table, one a specification; (): the methods
    reference: str = "vae"          # the line that differences are taken to
    note: str = ""                  # a sentence for the page
    published: float | None = None  # a number to compare with, IWAE in nats

    def __post_init__(self):
        require(len(self.specs) > 0, f"the study {self.name} is empty: name at least one method and seed")
        require(len(self.specs) <= MAX_RUNS, f"the study {self.name} has {len(self.specs)} runs: ask for at "
                f"most {MAX_RUNS}")
        object.__setattr__(self, "lines", self.lines or tuple(s.method for s in self.specs))

    def write(self, path: Path) -> None:
        "Write `study.json`."
        write_json(path, {k: v for k, v in vars(self).items() if k != "specs"}
                   | {"specs": [spec.to_json() for spec in self.specs]})

    @classmethod
    def read(cls, path: Path) -> "Study":
        "The study of a `study.json`."
        content = read_json(path)
        content.pop("sha256", None)
        try:
            specs = tuple(map(RunSpec.from_json, content.pop("specs")))
            return cls(specs=specs, **content | {"lines": tuple(content["lines"])})
        except (KeyError, TypeError, AttributeError) as e:
            raise InputError(f"{path} is no study: {e}") from e

    def of_seed(self, seed: int) -> "Study":
        "The runs of one seed; `InputError` where there are none."
        pairs = [pair for pair in zip(self.specs, self.lines) if pair[0].seed == seed]
        require(len(pairs) > 0, f"seed is {seed}: {self.name} has no run of this seed")
        return replace(self, specs=tuple(spec for spec, _ in pairs), lines=tuple(line for _, line in pairs))

    def results(self, store: Store) -> "Results":
        "What is finished, of the latest protocol, in the order of the specifications."
        wanted = pd.DataFrame({"spec": [s.text() for s in self.specs], "line": self.lines,
                               "number": range(len(self.specs))})
        rows = wanted.merge(store.table("runs"), on="spec")
        if len(rows):
            rows = rows[rows["protocol"] == rows["protocol"].max()]
            several = rows["number"].duplicated()
            if several.any():  # one name, other images
                check_comparable(rows[rows["number"] == rows.loc[several, "number"].iloc[0]])
        rows = rows.drop_duplicates("number", keep="last").sort_values("number", ignore_index=True)
        return Results(self, rows.drop(columns="number"), store)


@dataclass(frozen=True)
class Results:
    "The finished runs of a study."
    study: Study
    rows: pd.DataFrame  # of `runs.csv`, with a column `line`
    store: Store = field(repr=False)

    @cached_property
    def arrays(self) -> dict[str, dict]:  # run -> name -> array
        "Numbers of images, histories and pictures of each run."
        return {run: self.store.arrays(run) for run in self.rows["run"]}

    @cached_property
    def gaps(self) -> pd.DataFrame:
        "Rows of the gaps of these runs."
        return self.rows[["run", "line"]].merge(self.store.table("gaps"), on="run")

    @cached_property
    def modes(self) -> pd.DataFrame:
        "Rows of the test-time modes of these runs."
        return self.rows[["run", "line", "method", "seed"]].merge(self.store.table("modes"), on="run")

    @property
    def lines(self) -> list[str]:
        "The lines that have rows, in the order of the study."
        return [line for line in dict.fromkeys(self.study.lines) if line in set(self.rows["line"])]

    def where(self, **columns) -> "Results":
        "Those with the given values of columns."
        rows = self.rows
        for column, value in columns.items():
            rows = rows[rows[column] == value]
        return replace(self, rows=rows.reset_index(drop=True))


def name_lines(name: str, title: str, lines: Mapping[str, RunSpec],
               seeds: int = 1,  # of every line
               **more) -> Study:
    "A study of named lines, whole seeds first."
    pairs = [(line, replace_seed(spec, seed)) for seed in range(seeds) for line, spec in lines.items()]
    return Study(name, title, tuple(spec for _, spec in pairs), tuple(line for line, _ in pairs), **more)


def replace_seed(spec: RunSpec, seed: int) -> RunSpec:
    "The same specification, and its parent, with another seed."
    return replace(spec, seed=seed, parent=spec.parent and replace_seed(spec.parent, seed))


OURS = ("vae", "gpvae-mean", "gpvae")  # the reference, the control, the method
DEFAULTS = {  # budget -> methods with numbers of seeds, latent dimensions
    "smoke": (dict.fromkeys(OURS, 1), 10),
    "cpu": (dict.fromkeys((*OURS, "full"), 3) | dict.fromkeys(("iaf-4", "hf-4", "me-3", "rme-3"), 2)
            | {"sa-4": 1}, 20),
    "paper": (dict.fromkeys(OURS, 3), 50),
    "published": ({"vae": 1}, 40),
}


def grid(dataset: str = "digits",
         methods: Sequence[str] | Mapping[str, int] | None = None,  # with their seeds; None: the budget's
         z_dims: Sequence[int] | None = None,                       # None: the budget's
         seeds: int | None = None,  # of every method; None: the budget's, or those of `methods`
         budget: str = "smoke", likelihood: str | None = None,
         settings: Mapping[str, object] | Sequence[tuple] = (),     # changes to the budget and methods
         name: str | None = None, title: str | None = None, **more) -> Study:
    "Every method with every number of latent dimensions and every seed; checked."
    usual, usual_z = DEFAULTS[choose("budget", budget, DEFAULTS)]
    require(seeds is None or 1 <= seeds <= MAX_RUNS, f"seeds is {seeds}: choose from 1 to {MAX_RUNS}")
    methods = usual if methods is None else methods
    for method in methods:
        choose("method", method, METHODS)
    own = methods if isinstance(methods, Mapping) else usual
    counts = {m: seeds or own.get(m, 1) for m in methods}
    z_dims = list(dict.fromkeys(z_dims or [usual_z]))
    specs = tuple(RunSpec(dataset, method, z, seed, budget, likelihood, None, settings)
                  for seed in range(max(counts.values(), default=0)) for z in z_dims
                  for method, n in counts.items() if seed < n)
    for spec in {spec.method: spec for spec in specs}.values():
        merge_settings(spec)
    image_set = RunSpec(dataset).image_set
    own = "_own" if dataset.endswith(".npz") and image_set in CHOICES else ""
    words = [image_set + own, likelihood, z_dims != [usual_z] and "z" + "-".join(map(str, z_dims)),
             *(f"{k}{v}" for k, v in sorted(dict(settings).items())),
             budget != ("smoke" if image_set == "digits" else "cpu") and budget]
    name = name or re.sub(r"[^\w.+-]+", "-", "_".join(filter(None, words)))[:80].rstrip("-")
    title = title or f"Likelihoods on {SET_TITLES.get(image_set, image_set.replace('_', ' '))}"
    return Study(name, title, specs, **more)


GREY_SETTINGS = dict(kl_warmup=0., weight_decay=0.4)
GREY = dict(dataset="mnist", likelihood="gaussian", budget="cpu", settings=GREY_SETTINGS)
COLOUR = dict(budget="cpu", methods=dict.fromkeys((*OURS, "full"), 2) | {"sa-4": 1, "iaf-4": 1})
COLOUR_SETTINGS = GREY_SETTINGS | dict(precision="bfloat16")


def preset_studies() -> dict[str, Callable[[], Study]]:
    "The studies that have a page, by name."
    four = dict.fromkeys((*OURS, "full"), 3)
    return {
        "digits": lambda: grid("digits"),
        "static_mnist": lambda: grid("static_mnist", budget="cpu"),
        "grey_mnist": lambda: grid(**GREY, name="grey_mnist", title="Likelihoods on grey MNIST"),
        "grey_mnist_sizes": lambda: grid(
            **GREY, methods=four, z_dims=(10, 20, 50), name="grey_mnist_sizes",
            title="Likelihoods on grey MNIST with 10, 20 and 50 latent dimensions"),
        "binary_omniglot": lambda: grid("omniglot", COLOUR["methods"] | dict.fromkeys(OURS, 3), budget="cpu",
                                        name="binary_omniglot", title="Likelihoods on binary Omniglot"),
        "colour_cifar10": lambda: grid("cifar10", **COLOUR, settings=COLOUR_SETTINGS | {"n_test": 2000},
                                       name="colour_cifar10", title="Likelihoods on CIFAR-10 in colour"),
        "colour_celeba": lambda: grid(
            "celeba", **COLOUR, name="colour_celeba", title="Likelihoods on CelebA in colour",
            settings=COLOUR_SETTINGS | {"n_test": 1000, "epochs": 20, "milestones": (12.5, 15., 17.5)}),
        "static_mnist_published": lambda: grid(
            "static_mnist", budget="published", name="static_mnist_published",
            title="A published likelihood on static MNIST", published=-89.78,
            note="The library pythae publishes −89.78 nats (IWAE-200) for this model on Larochelle's split, "
            "784-400-40-400-784 with ReLU, where the paper that it reproduces has −89.9 (Rezende & Mohamed "
            "2015)."),
    }


def refit_with_dreams(spec: RunSpec, method: str | None = None) -> RunSpec:
    "A run with its encoder, or another one on its decoder, refitted with images drawn from the model."
    choice = CHOICES.get(spec.dataset)
    likelihood = spec.likelihood or (choice.likelihood if choice else "bernoulli")
    return refit_of(spec, method, **{} if likelihood == "bernoulli" else {"dream_source": "posterior"})


STEP = dict(natural_step=0.5)


def refined_variants(spec: RunSpec) -> dict[str, RunSpec]:  # by what is done
    "What is made of the encoder of a run after its training."
    refit = refit_with_dreams(spec)
    return {"one step": spec.change(**STEP), "refitted": refit, "refitted, one step": refit.change(**STEP)}


def static(method: str, **settings) -> RunSpec:
    "A run on static MNIST with 20 latent dimensions."
    return RunSpec("static_mnist", method, 20, 0, "cpu", settings=settings)


def grey(method: str, **settings) -> RunSpec:
    "A run on grey MNIST with 20 latent dimensions."
    return RunSpec("mnist", method, 20, 0, "cpu", "gaussian", settings=GREY_SETTINGS | settings)


def closing_lines(spec_of: Callable[..., RunSpec]) -> dict[str, RunSpec]:
    "What refits, full covariances and steps make of one VAE."
    vae = spec_of("vae")
    refit, full = refit_with_dreams(vae), refit_with_dreams(vae, "full")
    return {"VAE": vae, "VAE, one step": vae.change(**STEP), "VAE, refitted": refit,
            "VAE, refitted, one step": refit.change(**STEP),
            "GP encoder, refitted": refit_with_dreams(vae, "gpvae"),
            "full covariance": spec_of("full"), "full covariance, refitted": full,
            "full covariance, refitted, one step": full.change(**STEP)}


ABLATION = {  # one change of the budget `cpu` each
    "KL warm-up 10 epochs": dict(kl_warmup=10.), "no KL warm-up": dict(kl_warmup=0.),
    "no weight decay": dict(weight_decay=0.), "weight decay 0.1": dict(weight_decay=0.1),
    "weight decay 0.5": dict(weight_decay=0.5),
    "smaller steps from epoch 40": dict(milestones=(40., 50., 60., 70.)),
    "smaller steps from epoch 60": dict(milestones=(60., 70.)), "steps of one size": dict(milestones=()),
    "two samples": dict(n_samples=2)}
GP_ABLATION = {
    "KL warm-up 10 epochs": dict(kl_warmup=10.), "no weight decay": dict(weight_decay=0.),
    "steps of one size": dict(milestones=()), "noise warm-up 40 epochs": dict(noise_warmup=40.),
    "layer-normalised features": dict(features="layernorm"), "temperature 0.3": dict(temperature=0.3),
    "temperature 3": dict(temperature=3.), "prior scale 0.3": dict(prior_scale=0.3),
    "prior scale 3": dict(prior_scale=3.), "learned prior scale": dict(learn_prior_scale=True),
    "features of its own": dict(own_features=True)}


def ablation_lines() -> dict[str, RunSpec]:
    "The VAE and the GP encoder on static MNIST with one change at a time."
    lines = {"vae": static("vae"), "gpvae-mean": static("gpvae-mean"), "gpvae": static("gpvae")}
    lines |= {f"vae, {name}": static("vae", **change) for name, change in ABLATION.items()}
    return lines | {f"gpvae, {name}": static("gpvae", **change) for name, change in GP_ABLATION.items()}


def named_studies() -> dict[str, Callable[[], Study]]:
    "Studies without a page of their own, by name."
    sizes = ["vae", "gpvae", *(m for m in METHODS if METHODS[m].family in ("sa", "iaf", "hf", "me", "rme"))]
    schedules = {1000: dict(epochs=160, milestones=(100., 120., 140.)), 3000: {}, 10_000: {}, 50_000: {}}
    return {
        "closing": lambda: name_lines(
            "closing", "Closing the gap on static MNIST", closing_lines(static), 3, reference="VAE"),
        "closing_grey": lambda: name_lines(
            "closing_grey", "Closing the gap on grey MNIST", closing_lines(grey), 2, reference="VAE"),
        "ablation": lambda: name_lines(
            "ablation", "One change at a time on static MNIST", ablation_lines(), 3),
        "sizes": lambda: name_lines(
            "sizes", "All methods of the paper on static MNIST", {m: static(m) for m in sizes}),
        "sizes_grey": lambda: name_lines(
            "sizes_grey", "All methods of the paper on grey MNIST", {m: grey(m) for m in sizes}),
        "learning_curve": lambda: Study("learning_curve", "Gaps against training images", tuple(
            replace(static(m, n_train=n, **schedule), seed=seed) for n, schedule in schedules.items()
            for seed in range(3) for m in ("vae", "vae-dropout", "gpvae-mean", "gpvae"))),
    }


def find_study(name: str | Path) -> Study:
    "A study by its name, or that of a `study.json`."
    if str(name).endswith(".json"):
        return Study.read(Path(name))
    known = preset_studies() | named_studies()
    return known[choose("study", str(name), known)]()


def parse_study(study: str = "", dataset: str = "", budget: str = "", methods: str | Sequence[str] = "",
                z_dims: str | int | Sequence[int | str] = "", seeds: str | int = "", likelihood: str = "",
                settings: str | Sequence[str] = ""  # key=value, several with spaces between
                ) -> Study:
    "The study that words name, as the command line and papermill give them; empty words are left open."
    others = dict(dataset=dataset, budget=budget, methods=methods, z_dims=z_dims, seeds=seeds,
                  likelihood=likelihood, settings=settings)
    others = {k: v for k, v in others.items() if v not in ("", None, (), [])}
    if study:
        require(not others, f"study {study} and {', '.join(others)}: give one or the other")
        return find_study(study)
    def words(value):
        value = value.replace(",", " ").split() if isinstance(value, str) else value
        return value if isinstance(value, (list, tuple)) else [value]

    read = {"methods": words, "z_dims": lambda value: [whole_number("z_dims", z) for z in words(value)],
            "seeds": lambda value: whole_number("seeds", value),
            "settings": lambda v: list(map(parse_setting, v.split() if isinstance(v, str) else v))}
    return grid(**{k: read[k](v) if k in read else v for k, v in others.items()})


def whole_number(name: str, value: object) -> int:
    "A whole number, from words too."
    number = parse_setting(f"{name}={value}")[1] if isinstance(value, str) else value
    check_kinds(int, **{name: number})
    return number


assert set(DEFAULTS) == set(BUDGETS)
