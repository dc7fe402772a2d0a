"Settings: what costs time or decides a result, in sections; budgets that name all of them; changes to them."
import ast
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from types import UnionType
from typing import get_args, get_origin

from gpvae.checks import check_kinds, choose, require
from gpvae.networks import ACTIVATIONS
from gpvae.study.methods import METHODS, encoder_options
from gpvae.train_step import TrainConfig


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
    start: str = "trained"               # of a refit's encoder: trained (goes on), or new

    def __post_init__(self):
        choose("network", self.network, ("auto", "mlp", "conv"))
        choose("start", self.start, ("trained", "new"))
        choose("activation", self.activation, ACTIVATIONS)
        for name in ("hidden", "trunk"):
            check_kinds(int, 1, **{f"{name}[{i}]": width for i, width in enumerate(getattr(self, name))})
        require(len(self.hidden) > 0, "hidden is (): name at least one width, as in hidden=(500,500)")


@dataclass(frozen=True)
class EvaluationConfig:
    "How the trained model is judged."
    k: int = 100               # importance samples of the test likelihood
    natural_step: float = 0.   # factor of a natural-gradient step at test time; 0: none

    def __post_init__(self):
        check_kinds(int, 1, k=self.k)
        require(0 <= self.natural_step <= 1, f"natural_step is {self.natural_step}: choose from 0 to 1")


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


def parse_setting(text: str) -> tuple[str, object]:
    "`key=value` as a pair; the value is a Python literal, else a string."
    require("=" in text, f"--set {text!r} is not key=value")
    key, value = text.split("=", 1)
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return key, value


def usual_settings(method: str, budget: str) -> dict[str, object]:
    "What every setting, and every option of the method, is where nothing is changed."
    choose("method", method, METHODS)
    sections = BUDGETS[choose("budget", budget, BUDGETS)]
    usual = {key: getattr(getattr(sections, section), key) for key, section in SECTION_OF.items()}
    return usual | encoder_options(method) | FAMILY_SETTINGS.get(METHODS[method].family, {})


def declared_kind(key: str, usual: object) -> object:  # a type, a union or a generic
    "The annotation of a setting; the type of the default of an encoder's option."
    if key not in SECTION_OF:
        return type(usual)
    return next(f.type for f in fields(SECTIONS[SECTION_OF[key]]) if f.name == key)


def as_declared(key: str, value: object, usual: object) -> object:
    "A value in the kind of its setting, 20 as 20. where a float is declared; `InputError` for another kind."
    def as_float(number): return float(number) if type(number) is int and abs(number) < 2**63 else number
    declared = declared_kind(key, usual)
    kinds = get_args(declared) if isinstance(declared, UnionType) else (declared,)
    if float in kinds:
        value = as_float(value)
    if declared == tuple[float, ...] and isinstance(value, tuple):
        value = tuple(map(as_float, value))
    fits = type(value) in [get_origin(kind) or kind for kind in kinds]
    fits &= not isinstance(value, (int, float)) or abs(value) < 2**63  # infinity and NaN are no numbers
    require(fits, f"setting {key}={value!r}: expected something like {100 if usual is None else usual!r}")
    return value


def complete(method: str, budget: str, changes: Iterable[tuple[str, object]]) -> dict[str, object]:
    "The value of every setting and of every option of the method; `InputError` for what is unknown or unfit."
    usual = usual_settings(method, budget)
    for key, _ in changes:
        choose(f"setting of method {method}", key, usual)
    return {key: as_declared(key, value, usual[key]) for key, value in (usual | dict(changes)).items()}


def into_sections(values: dict[str, object], seed: int) -> tuple[Budget, dict[str, object]]:
    "The values of `complete` as checked sections, and the options of the encoder."
    sections = {section: kind(**{key: values[key] for key, of in SECTION_OF.items() if of == section},
                              **({"seed": seed} if section == "train" else {}))
                for section, kind in SECTIONS.items()}
    milestones = sections["train"].milestones
    rising = all(a < b for a, b in zip(milestones, milestones[1:]))
    require(rising, f"milestones is {milestones}: the epochs must increase")
    return Budget(**sections), {key: value for key, value in values.items() if key not in SECTION_OF}
