"The specification of a run, as asked, and its resolution into the configuration that decides the result."
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import SupportsIndex

import torch

from gpvae.checks import InputError, check_kinds, choose, require
from gpvae.data import ImageSet, check_binarisation, load
from gpvae.files import sha256
from gpvae.likelihoods import LIKELIHOODS
from gpvae.networks import ConvDecoder, conv_trunk, mlp_decoder, mlp_trunk
from gpvae.sources import CHOICES
from gpvae.study.methods import METHODS
from gpvae.study.settings import (SECTION_OF, SECTIONS, Budget, DataConfig, EvaluationConfig, ModelConfig,
                                  complete, into_sections, plain_value, usual_settings)
from gpvae.train_step import TrainConfig
from gpvae.vae import VAE

PROTOCOL = 4             # raise when the same specification would give another result
MAX_SEED = 10**12        # seeds of noise are made from it and must fit into a generator
MAX_Z_DIM = 10_000       # latent dimensions


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
    settings: Mapping[str, object] | Sequence = ()  # of the budget and the method, changed; kept as pairs
    parent: "RunSpec | None" = None     # its trained decoder stays frozen, the encoder alone is trained

    def __post_init__(self):
        pairs = self.settings.items() if isinstance(self.settings, Mapping) else self.settings
        try:
            pairs = [(key, plain_value(value)) for key, value in pairs]
        except (TypeError, ValueError):
            raise InputError(f"settings is {self.settings!r}: pass pairs (key, value)") from None
        names = [key for key, _ in pairs]
        for name in names:
            require(names.count(name) == 1, f"{name} is given {names.count(name)} times: give it once")
        object.__setattr__(self, "settings", tuple(sorted(pairs)))
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
        usual = usual_settings(self.method, self.budget)
        values = complete(self.method, self.budget, self.settings)
        changed = [f"{k}={values[k]!r}".replace(" ", "") for k, _ in self.settings if values[k] != usual[k]]
        choice = CHOICES.get(self.dataset)
        likelihood, binarisation = self.likelihood, self.binarisation
        if choice:
            likelihood = likelihood or choice.likelihood
            binarisation = binarisation or (choice.binarisation if likelihood == "bernoulli" else "none")
        words = [self.image_set, self.method, f"z={self.z_dim}", f"seed={self.seed}", self.budget,
                 likelihood or "auto", binarisation or "auto", *changed]
        return " ".join(words) + (f" | decoder of {self.parent.text()}" if self.parent else "")


def merge_settings(spec: RunSpec) -> tuple[Budget, dict[str, object]]:  # sections, options of the encoder
    "The budget with the family's and the specification's changes, checked."
    return into_sections(complete(spec.method, spec.budget, spec.settings), spec.seed)


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
    protocol: int = PROTOCOL

    @property
    def id(self) -> str:  # 12 hexadecimal digits
        "The name of the run: equal for equal results."
        identity = {k: v for k, v in asdict(self).items() if k not in ("spec", "parent")}
        identity["train"].pop("checkpoint_seconds")
        return sha256(identity | {"parent": self.parent and self.parent.id})[:12]

    @property
    def trained(self) -> "RunConfig":
        "The same training, judged as usual: its checkpoint serves every way of judging."
        changes = {k: v for k, v in self.spec.settings if k != "natural_step"}
        spec = replace(self.spec, settings=changes)
        return replace(self, evaluation=EvaluationConfig(self.evaluation.k), spec=spec)


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
    require(likelihood != "bernoulli" or binarisation != "none", "a bernoulli likelihood needs binary "
            "pixels: choose binarisation static, fixed or stochastic, or a gaussian likelihood")
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
    for name in ("dataset", "z_dim", "seed", "likelihood", "binarisation"):
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
