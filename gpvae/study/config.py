"Budgets, the specification of a run, and its resolution into the configuration that decides the result."
import ast
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import SupportsIndex, get_args, get_origin

import torch

from gpvae.checks import InputError, check_kinds, choose, require
from gpvae.data import ImageSet, check_binarisation, load
from gpvae.files import sha256
from gpvae.likelihoods import LIKELIHOODS
from gpvae.networks import ACTIVATIONS, ConvDecoder, conv_trunk, mlp_decoder, mlp_trunk
from gpvae.sources import CHOICES
from gpvae.study.methods import METHODS, encoder_options
from gpvae.train_step import TrainConfig
from gpvae.vae import VAE

PROTOCOL = 4             # raise when the same specification would give another result
MAX_SEED = 10**12        # seeds of noise are made from it and must fit into a generator
MAX_Z_DIM = 10_000       # latent dimensions


@dataclass(frozen=True)
class DataConfig:
    "How many images; None: all that there are."
    n_train: int | None = 10_000
    n_valid: int | None = 2000
    n_test: int | None = None

    def __post_init__(self):
        check_kinds(int, 1, **{k: v for k, v in asdict(self).items() if v is not None})


@dataclass(frozen=True)
class ModelConfig:
    "Sizes of trunk and decoder."
    network: str = "auto"                # mlp, conv, or auto: convolutional for colour
    hidden: tuple[int, ...] = (500, 500)  # widths of trunk and decoder, from the image side on
    trunk: tuple[int, ...] = ()          # widths of the trunk; (): those of `hidden`
    activation: str = "relu"             # between the layers: relu, gelu, silu
    start: str = "trained"               # of a refit: its encoder goes on (trained), or a new one begins (new)

    def __post_init__(self):
        choose("network", self.network, ("auto", "mlp", "conv"))
        choose("start", self.start, ("trained", "new"))
        choose("activation", self.activation, ACTIVATIONS)
        for name in ("hidden", "trunk"):
            require(isinstance(getattr(self, name), (tuple, list)), f"{name} must be a tuple of widths")
            object.__setattr__(self, name, tuple(getattr(self, name)))
            check_kinds(int, 1, **{f"{name}[{i}]": width for i, width in enumerate(getattr(self, name))})
        require(len(self.hidden) > 0, "hidden is (): name at least one width, as in hidden=(500,500)")


@dataclass(frozen=True)
class EvaluationConfig:
    "How the trained model is judged."
    k: int = 100                 # importance samples of the test likelihood
    inflation: float = 1.        # factor on the variances of the importance proposal
    natural_step: float = 0.     # factor of natural-gradient steps at test time; 0: none
    natural_steps: int = 1       # how many, if any
    variance_scale: float = 1.   # factor on the variance of random functions at test time

    def __post_init__(self):
        check_kinds(int, 1, k=self.k, natural_steps=self.natural_steps)
        positive = dict(inflation=self.inflation, variance_scale=self.variance_scale)
        check_kinds(float, **positive, natural_step=self.natural_step)
        for name, value in positive.items():
            require(value > 0, f"{name} is {value}: it must be positive")
        require(0 <= self.natural_step <= 1, f"natural_step is {self.natural_step}: choose from 0 to 1")
        taken = self.natural_steps == 1 or self.natural_step > 0
        require(taken, f"natural_steps is {self.natural_steps}: name their factor too, as in natural_step=0.5")


@dataclass(frozen=True)
class Budget:
    "Everything that costs time, under one name."
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


SECTIONS = {f.name: f.type for f in fields(Budget)}
SECTION_OF = {f.name: section for section, kind in SECTIONS.items() for f in fields(kind) if f.name != "seed"}

CPU_TRAINING = TrainConfig(epochs=80, milestones=(50., 60., 70.), weight_decay=0.2, kl_warmup=40, patience=20)
BUDGETS = {
    "smoke": Budget(DataConfig(2000, 500, 1000), ModelConfig(hidden=(200, 200)),
                    TrainConfig(epochs=100, weight_decay=0.2, kl_warmup=20, checkpoint_seconds=1.)),
    "cpu": Budget(train=CPU_TRAINING),
    "paper": Budget(DataConfig(None, None),
                    train=TrainConfig(epochs=2000, lr=5e-4, weight_decay=0.02, kl_warmup=200, patience=200,
                                      checkpoint_seconds=30.)),
    "published": Budget(DataConfig(None, None), ModelConfig(hidden=(400,)),
                        TrainConfig(epochs=700, batch_size=100, weight_decay=0.03, kl_warmup=20,
                                    milestones=(500., 550., 590., 625., 655., 680.), lr_factor=0.5),
                        EvaluationConfig(k=200)),
}
FAMILY_SETTINGS = {"sa": {"weight_decay": 0.4}}  # where validation images choose another than the VAE's


def plain_value(value: object) -> object:
    "A number of NumPy as one of Python, a list as a tuple."
    if isinstance(value, list):
        return tuple(map(plain_value, value))
    return value.item() if hasattr(value, "dtype") and hasattr(value, "item") else value


@dataclass(frozen=True)
class RunSpec:
    "One model to train and evaluate, as a user asks for it."
    dataset: str = "digits"             # name of an image set, or the path of an .npz
    method: str = "gpvae"               # one of METHODS
    z_dim: SupportsIndex = 20           # latent dimensions
    seed: SupportsIndex = 0             # initialisation, order of the images, noise
    budget: str = "smoke"               # one of BUDGETS
    likelihood: str | None = None       # one of LIKELIHOODS; None: the data set's
    binarisation: str | None = None     # static, fixed, stochastic, none; None: the data set's
    settings: Mapping[str, object] | Sequence = ()  # changes to the budget, options of the method; kept as pairs
    parent: "RunSpec | None" = None     # its trained decoder stays frozen, the encoder alone is trained

    def __post_init__(self):
        some = isinstance(self.settings, (Mapping, Sequence))
        require(some, f"settings is {self.settings!r}: pass pairs (key, value)")
        pairs = self.settings.items() if isinstance(self.settings, Mapping) else self.settings
        pairs = [tuple(pair) for pair in pairs if isinstance(pair, (tuple, list)) and len(pair) == 2]
        require(len(pairs) == len(self.settings), f"settings is {self.settings!r}: pass pairs (key, value)")
        names = [key for key, _ in pairs]
        for name in names:
            require(names.count(name) == 1, f"{name} is given {names.count(name)} times: give it once")
        settings = tuple(sorted((key, plain_value(value)) for key, value in pairs))
        object.__setattr__(self, "settings", settings)
        for name in ("z_dim", "seed"):
            object.__setattr__(self, name, plain_value(getattr(self, name)))

    @property
    def image_set(self) -> str:
        "Name of the image set, without the folder of a file."
        return Path(self.dataset).stem if self.dataset.endswith(".npz") else self.dataset

    def change(self, **settings) -> "RunSpec":
        "The same specification with other settings."
        return replace(self, settings=dict(self.settings) | settings)

    def to_json(self) -> dict:
        "The fields that are not the default, as JSON can hold them."
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {"settings": dict(self.settings), "parent": self.parent and self.parent.to_json()}
        return {k: v for k, v in values.items() if v not in (None, {})}

    @classmethod
    def from_json(cls, values: dict) -> "RunSpec":
        "The specification that `to_json` wrote; an unknown field is refused by name."
        for name in values:
            choose("field of a specification", name, [f.name for f in fields(cls)])
        parent = values.get("parent")
        return cls(**values | {"parent": parent and cls.from_json(parent)})

    def text(self) -> str:
        "One line that names the specification in results files; the same run has the same line."
        usual = usual_settings(self)
        changed = [f"{k}={as_declared(v, declared_kind(k, usual.get(k)))!r}".replace(" ", "")
                   for k, v in self.settings if usual.get(k, self) != v]
        choice = CHOICES.get(self.dataset)
        likelihood, binarisation = self.likelihood, self.binarisation
        if choice:
            likelihood = likelihood or choice.likelihood
            binarisation = binarisation or (choice.binarisation if likelihood == "bernoulli" else "none")
        words = [self.image_set, self.method, f"z={self.z_dim}", f"seed={self.seed}", self.budget,
                 likelihood or "auto", binarisation or "auto", *changed]
        return " ".join(words) + (f" | decoder of {self.parent.text()}" if self.parent else "")


def parse_setting(text: str) -> tuple[str, object]:
    "`key=value` as a pair; the value is a Python literal, else a string."
    require("=" in text, f"--set {text!r} is not key=value")
    key, value = text.split("=", 1)
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return key, value


def usual_settings(spec: RunSpec) -> dict[str, object]:
    "What every setting and option is where the specification does not change it."
    choose("method", spec.method, METHODS)
    budget = BUDGETS[choose("budget", spec.budget, BUDGETS)]
    usual = {key: getattr(getattr(budget, section), key) for key, section in SECTION_OF.items()}
    return usual | encoder_options(spec.method) | FAMILY_SETTINGS.get(METHODS[spec.method].family, {})


def check_kind(key: str, value: object, default: object) -> None:
    "Raise `InputError` unless a setting has its declared kind, an option of an encoder that of its default."
    declared = declared_kind(key, default)
    kinds = get_args(declared) if isinstance(declared, UnionType) else (declared,)
    fits = False
    for kind in kinds:
        many = get_origin(kind) or kind
        truth = isinstance(value, bool) and kind is not bool
        fits |= not truth and isinstance(value, (int, float) if kind is float else many)
    for number in value if isinstance(value, (tuple, list)) else (value,):
        fits &= not isinstance(number, (int, float)) or abs(number) < 2**63  # infinity and NaN are none
        item = get_args(declared)[0] if get_origin(declared) is tuple else object
        fits &= isinstance(number, (int, float) if item is float else item)
        fits &= number is value or not isinstance(number, bool)
    require(fits, f"setting {key}={value!r}: expected something like {100 if default is None else default!r}")


def declared_kind(key: str, default: object) -> object:  # a type, a union or a generic
    "The annotation of a setting; the type of the default of an encoder's option."
    if key not in SECTION_OF:
        return type(default)
    return next(f.type for f in fields(SECTIONS[SECTION_OF[key]]) if f.name == key)


def merge_settings(spec: RunSpec) -> tuple[Budget, dict[str, object]]:  # sections, options of the encoder
    "The budget with the family's and the specification's changes, checked."
    usual = usual_settings(spec)
    options = encoder_options(spec.method)
    for key, value in spec.settings:
        choose(f"setting of method {spec.method}", key, [*SECTION_OF, *sorted(options)])
        check_kind(key, value, usual[key])
    merged = usual | dict(spec.settings)
    sections = {}
    for section, kind in SECTIONS.items():
        values = {key: merged[key] for key, of in SECTION_OF.items() if of == section}
        values = {k: as_declared(v, declared_kind(k, None)) for k, v in values.items()}
        sections[section] = kind(**values | ({"seed": spec.seed} if section == "train" else {}))
    milestones = sections["train"].milestones
    rising = all(a < b for a, b in zip(milestones, milestones[1:]))
    require(rising, f"milestones is {milestones}: the epochs must increase")
    return Budget(**sections), {k: as_declared(merged[k], type(v)) for k, v in options.items()}


def as_declared(value: object, kind: object) -> object:
    "A whole number as a float where a float is declared: 20 and 20.0 are one setting."
    if get_origin(kind) is tuple and get_args(kind)[0] is float:
        return tuple(map(float, value))
    wants_float = kind is float or float in get_args(kind)
    return float(value) if wants_float and isinstance(value, int) and not isinstance(value, bool) else value


@dataclass(frozen=True)
class RunConfig:
    "All that decides the result of a run; nothing is left open."
    spec: RunSpec                   # as asked
    dataset: str                    # name of the image set
    method: str
    options: dict[str, object]      # of the encoder, all of them
    z_dim: int
    seed: int
    likelihood: str
    binarisation: str
    x_shape: tuple[int, int, int]   # (C, H, W)
    checksum: str                   # SHA-256 of the prepared pixels
    data: DataConfig                # with numbers
    model: ModelConfig
    train: TrainConfig
    evaluation: EvaluationConfig
    parent: "RunConfig | None" = None
    protocol: int = field(default=PROTOCOL)

    @property
    def id(self) -> str:  # 12 hexadecimal digits
        "The name of the run: equal for equal results."
        identity = {k: v for k, v in asdict(self).items() if k not in ("spec", "parent")}
        identity["train"].pop("checkpoint_seconds")
        return sha256(identity | {"parent": self.parent and self.parent.id})[:12]

    @property
    def trained(self) -> "RunConfig":
        "The same training, judged as usual: its checkpoint serves every way of judging."
        usual = replace(EvaluationConfig(), k=self.evaluation.k)
        changes = {k: v for k, v in self.spec.settings if SECTION_OF.get(k) != "evaluation" or k == "k"}
        return replace(self, evaluation=usual, spec=replace(self.spec, settings=changes))


def resolve(spec: RunSpec, data: ImageSet | None = None  # the whole image set, where it is loaded already
            ) -> RunConfig:
    "Check a specification and fill in everything that it leaves open; `InputError` says what cannot be."
    budget, options = merge_settings(spec)
    check_kinds(int, 1, z_dim=spec.z_dim)
    require(spec.z_dim <= MAX_Z_DIM, f"z_dim is {spec.z_dim}: choose at most {MAX_Z_DIM}")
    check_kinds(int, 0, seed=spec.seed)
    require(spec.seed <= MAX_SEED, f"seed is {spec.seed}: use an integer from 0 to {MAX_SEED}")
    if spec.likelihood is not None:
        choose("likelihood", spec.likelihood, LIKELIHOODS)
    parent = None if spec.parent is None else resolve_parent(spec, budget.model, data)
    data = load(spec.dataset) if data is None else data
    likelihood = spec.likelihood or data.choice.likelihood
    usual = data.choice.binarisation if likelihood == "bernoulli" else "none"
    binarisation = usual if spec.binarisation is None else spec.binarisation
    check_binarisation(data, binarisation)
    require(likelihood != "bernoulli" or binarisation != "none", "a bernoulli likelihood needs binary pixels: "
            "choose binarisation static, fixed or stochastic, or a gaussian likelihood")
    asked = dict(spec.settings)
    counts = {}
    for name in ("n_train", "n_valid", "n_test"):
        there, wanted = len(getattr(data, f"x_{name[2:]}")), getattr(budget.data, name)
        fits = name not in asked or wanted is None or wanted <= there
        require(fits, f"{name} is {wanted}: {data.name} has {there} such images, pass 1 to {there}")
        counts[name] = there if wanted is None else min(wanted, there)
    return RunConfig(spec, spec.image_set, spec.method, options, int(spec.z_dim), int(spec.seed), likelihood,
                     binarisation, tuple(data.x_shape), data.checksum, DataConfig(**counts), budget.model,
                     budget.train, budget.evaluation, parent)


def resolve_parent(spec: RunSpec, model: ModelConfig, data: ImageSet | None) -> RunConfig:
    "The run whose decoder stays frozen; `InputError` where its decoder would not fit."
    try:
        parent = resolve(spec.parent, data)
    except InputError as e:
        raise InputError(f"the run whose decoder is frozen: {e}") from None
    require(parent.parent is None, f"the decoder of {parent.method} is frozen itself: refit its parent")
    same = ("dataset", "z_dim", "seed", "likelihood", "binarisation")
    for name in same:
        own, other = getattr(spec, name), getattr(spec.parent, name)
        require(own == other, f"{name} is {own}, the decoder's run has {other}: give both the same")
    for name in ("hidden", "network", "activation"):
        own, other = getattr(model, name), getattr(parent.model, name)
        require(own == other, f"{name} is {own}, the decoder's run has {other}: give the refit the same, "
                "and the width of its trunk by the setting trunk")
    return parent.trained


def resolve_all(specs: Iterable[RunSpec]) -> list[RunConfig]:
    "Resolve specifications, reading each image set once; a method that refuses its options does so now."
    loaded: dict[str, ImageSet] = {}
    configs, built = [], set()
    for spec in specs:
        if spec.dataset not in loaded:
            merge_settings(spec)  # what is wrong with the words comes before what is wrong with the images
            loaded[spec.dataset] = load(spec.dataset)
        config = resolve(spec, loaded[spec.dataset])
        kind = (config.method, *sorted(config.options.items()))
        if kind not in built:
            built.add(kind)
            build_model(config)
        configs.append(config)
    return configs


def load_images(config: RunConfig) -> ImageSet:
    "The images of a run, cut to its numbers; `InputError` where the set holds other pixels now."
    data = load(config.spec.dataset, n_train=config.data.n_train, n_valid=config.data.n_valid)
    require(data.checksum == config.checksum, f"{config.spec.dataset} holds other images than the run was "
            "made with: bring the old images back, or run the specification again")
    n = config.data.n_test
    return replace(data, x_test=data.x_test[:n], y_test=None if data.y_test is None else data.y_test[:n])


def build_model(config: RunConfig) -> VAE:
    "The untrained model of a run, initialised by its seed."
    model, colour = config.model, config.x_shape[0] > 1
    convolutional = model.network == "conv" or (model.network == "auto" and colour)
    widths = model.trunk or model.hidden
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if convolutional:
            trunk = conv_trunk(config.x_shape, widths[-1], activation=model.activation)
            decoder = ConvDecoder(config.z_dim, config.x_shape, model.hidden[-1], activation=model.activation)
        else:
            trunk = mlp_trunk(config.x_shape, widths, model.activation)
            decoder = mlp_decoder(config.z_dim, config.x_shape, model.hidden[::-1], model.activation)
        encoder = METHODS[config.method].encoder(trunk, widths[-1], config.z_dim, **config.options)
        return VAE(encoder, decoder, LIKELIHOODS[config.likelihood](math.prod(config.x_shape)))


REFIT = dict(dreams=0.5, epochs=80, batch_size=64, lr=1e-3, milestones=(40., 52., 64., 72.), kl_warmup=0.,
             noise_warmup=0., patience=None)


def refit_of(parent: RunSpec,             # whose decoder stays frozen
             method: str | None = None,   # of the encoder; None: the parent's
             **settings                   # that differ from those of refits
             ) -> RunSpec:
    "A specification that trains an encoder alone, half of its batch drawn from the model unless said."
    own = dict(parent.settings)
    if method not in (None, parent.method):
        own = {k: v for k, v in own.items() if k in SECTION_OF}
    return replace(parent, method=method or parent.method, settings=own | REFIT | settings, parent=parent)


def config_to_json(config: RunConfig) -> dict:
    "A configuration as JSON can hold it."
    parent = config.parent and config_to_json(config.parent)
    return asdict(config) | {"spec": config.spec.to_json(), "parent": parent}


def config_from_json(values: dict) -> RunConfig:
    "The configuration that `config_to_json` wrote."
    sections = {name: kind(**{k: plain_value(v) for k, v in values[name].items()})
                for name, kind in SECTIONS.items()}
    options = {k: plain_value(v) for k, v in values["options"].items()}
    parent = values["parent"] and config_from_json(values["parent"])
    more = dict(spec=RunSpec.from_json(values["spec"]), options=options, parent=parent,
                x_shape=tuple(values["x_shape"]))
    return RunConfig(**values | sections | more)
