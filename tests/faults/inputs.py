"Inputs that cannot work, for the public functions and the commands: each must be refused in one line."

import contextlib
import io
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args, get_origin

import numpy as np
import torch

from faults import Tally, outcome
from gpvae.evaluation.ais import AISConfig, ais, sandwich
from gpvae.encoders.full_covariance import FullEncoder
from gpvae.encoders.householder import HouseholderEncoder
from gpvae.encoders.iaf import IAFEncoder
from gpvae.encoders.mixture import MixtureEncoder
from gpvae.encoders.recursive_mixture import RecursiveMixtureEncoder
from gpvae.encoders.semi_amortized import SemiAmortized
from gpvae.encoders.laplace import LaplaceEncoder
from gpvae.checks import InputError
from gpvae.data import load, prepare_splits, to_float
from gpvae.evaluation.gap import iwae_by_width, measure_gaps
from gpvae.encoders.gp import GPEncoder
from gpvae.evaluation.iwae import evaluate
from gpvae.likelihoods import Bernoulli
from gpvae.networks import ConvDecoder, conv_trunk, mlp_decoder, mlp_trunk
from gpvae.inference.best_gaussian import Climb, best_gaussians
from gpvae.posteriors import DiagonalGaussian, FullGaussian, GaussianMixture
from gpvae.study.cli import main as command
from gpvae.study.config import RunSpec, merge_settings, resolve
from gpvae.study.gaps import GapSettings
from gpvae.study.methods import encoder_options
from gpvae.study.settings import SECTION_OF, declared_kind, usual_settings
from gpvae.study.studies import parse_study
from models import build_model
from gpvae.evaluation.timing import milliseconds
from gpvae.training import TrainConfig, train, validation_bound
from gpvae.evaluation.scores import scores
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.vae import VAE

NAN, INF = float("nan"), float("inf")
SHAPE = (1, 4, 4)


class Bad(NamedTuple):
    "An input that must be refused."

    kind: str
    name: str
    call: Callable


# --- specifications -------------------------------------------------------------------------------

WHOLE = ["x", 1.5, True, NAN, INF, 2**63, (3,), [3], {}, -1, 0]
NUMBERS = ["x", True, NAN, INF, -INF, (0.1,), [0.1], 10**400, -1]
MANY = [5, 0.5, "ab", ("a",), (NAN,), (True,), (-1,), ((1,),), None]


def wrong_settings() -> Iterator[Bad]:
    "Every setting with values of another kind or outside its range."
    usual = usual_settings("vae", "smoke")
    merged = lambda key, v: merge_settings(RunSpec(settings=((key, v),)))
    for key in SECTION_OF:
        kind, default = declared_kind(key, usual[key]), usual[key]
        kinds, many = get_args(kind) or (kind,), get_origin(kind) is tuple
        words = [v for v in (5, None, True, "", "mpl", ("mlp",)) if v != default]
        values = MANY if many else {int: WHOLE, float: NUMBERS, str: words, bool: ["x", 5, None]}[kinds[0]]
        if type(None) not in kinds and not many and kinds[0] in (int, float):
            values = [*values, None]
        for v in values:
            if (key, v) != ("lr_warmup", 0):
                yield Bad("settings", f"{key}={v!r}", partial(merged, key, v))
    for key in ("hidden", "milestones"):
        for v in {"hidden": [(), (0,), (8, 0), (1.5,)], "milestones": [(9.0, 3.0), (3.0, 3.0), (INF,)]}[key]:
            yield Bad("settings", f"{key}={v!r}", partial(merged, key, v))
    for key, v in (("lr", 0), ("lr_factor", 0), ("lr_factor", 1.1), ("max_norm", 0), ("natural_step", 2),
                   ("no_such", 1), ("", 1), (5, 1), (None, 1)):
        yield Bad("settings", f"{key}={v!r}", partial(merged, key, v))


def wrong_identities() -> Iterator[Bad]:
    "Every field of a specification."
    words = [None, 5, True, "", "x y", "../digits", b"digits", ("vae",), NAN]
    values = dict(z_dim=[*WHOLE, None, 10**8],
                  seed=[v for v in [*WHOLE, None, 10**13] if v != 0],
                  dataset=[*words, "nowhere.npz", ".npz", "/"],
                  method=[*words, "VAE"],
                  budget=[*words, "CPU"],
                  likelihood=[v for v in words if v is not None],
                  binarisation=[v for v in words if v is not None],
                  settings=[5, "lr", ("lr",), (("lr", 0.1, 2),), (("lr", 0.1), ("lr", 0.1))])
    for name, some in values.items():
        for v in some:
            yield Bad("specifications", f"{name}={v!r}", lambda name=name, v=v: resolve(RunSpec(**{name: v})))
    for more in (dict(binarisation="static"), dict(binarisation="none"), dict(settings=dict(n_train=5000)),
                 dict(settings=dict(n_valid=5000)), dict(settings=dict(n_test=5000)),
                 dict(parent=RunSpec(seed=1)), dict(parent=RunSpec(z_dim=3)),
                 dict(parent=RunSpec(parent=RunSpec()))):
        yield Bad("specifications", repr(more), lambda more=more: resolve(RunSpec(**more)))


def wrong_options() -> Iterator[Bad]:
    "Every option of every family of methods."
    made = lambda spec: build_model(spec, (1, 8, 8))
    for method in ("gpvae", "vae-dropout", "vlae", "svi", "sa-4", "gpvae+sa-2", "iaf-2", "hf-2", "me-3",
                   "rme-3"):
        for key, default in encoder_options(method).items():
            if isinstance(default, bool):
                values = ["x", 5, None, 0.5]
            elif isinstance(default, int):
                values = ["x", NAN, True, None, -1, 2**70]
            elif isinstance(default, float):
                values = (["x", NAN, True, None, (1.0,), INF, -1.0] if key != "forget_bias"
                          else ["x", NAN, None, INF])
            else:
                values = [5, None, True, "", "nothing"]
            for v in values:
                yield Bad("options of encoders", f"{method} {key}={v!r}",
                          partial(made, RunSpec(method=method, settings=((key, v),))))


# --- encoders, networks and posteriors ------------------------------------------------------------


def wrong_encoders() -> Iterator[Bad]:
    "Encoders, networks and models made by hand."
    trunk, one = mlp_trunk(SHAPE, (8,)), lambda: AmortizedEncoder(mlp_trunk(SHAPE, (8,)), 8, 2)
    for cls in (AmortizedEncoder, GPEncoder, FullEncoder, HouseholderEncoder, IAFEncoder, MixtureEncoder,
                RecursiveMixtureEncoder, LaplaceEncoder):
        for h, z in ((8, 0), (8, -1), (0, 2), (-3, 2)):
            yield Bad("encoders", f"{cls.__name__} h_dim={h} z_dim={z}", partial(cls, trunk, h, z))
    made = [(AmortizedEncoder, dict(dropout=1.0)),
            (AmortizedEncoder, dict(dropout=-0.1)),
            (AmortizedEncoder, dict(dropout=NAN)),
            (GPEncoder, dict(covariance="ful")),
            (GPEncoder, dict(features="x")),
            (GPEncoder, dict(mode="x")),
            (GPEncoder, dict(prior_scale=0.0)),
            (GPEncoder, dict(prior_scale=NAN)),
            (GPEncoder, dict(temperature=-1.0)),
            (GPEncoder, dict(temperature=NAN)),
            (GPEncoder, dict(n_mixture=0)),
            (FullEncoder, dict(rank=-1)),
            (FullEncoder, dict(rank=9)),
            (HouseholderEncoder, dict(reflections=0)),
            (IAFEncoder, dict(flows=0)),
            (IAFEncoder, dict(flow_width=0)),
            (IAFEncoder, dict(context_width=-1)),
            (MixtureEncoder, dict(n_components=0)),
            (MixtureEncoder, dict(spread=2.0)),
            (MixtureEncoder, dict(spread=NAN)),
            (RecursiveMixtureEncoder, dict(eta=-1.0)),
            (RecursiveMixtureEncoder, dict(C=0.0)),
            (RecursiveMixtureEncoder, dict(epsilon=1.0)),
            (RecursiveMixtureEncoder, dict(n_components=0)),
            (LaplaceEncoder, dict(n_solves=0)),
            (LaplaceEncoder, dict(damping=0.0)),
            (LaplaceEncoder, dict(damping=NAN))]
    for cls, options in made:
        yield Bad("encoders", f"{cls.__name__} {options}", partial(cls, trunk, 8, 2, **options))
    for options in (dict(steps=0), dict(step_size=0.0), dict(step_size=NAN), dict(clip=0.0),
                    dict(momentum=1.0), dict(inner_samples=0), dict(refine=0.0), dict(refine=2.0),
                    dict(refine=0.5), dict(rank="x")):
        yield Bad("encoders", f"SemiAmortized {options}", lambda o=options: SemiAmortized(one(), **o))
    yield Bad("encoders", "a function as encoder",
              lambda: VAE(torch.nn.Linear(4, 4), mlp_decoder(2, SHAPE, (8,)), Bernoulli()))
    yield Bad("encoders", "a plain module as likelihood",
              lambda: VAE(one(), mlp_decoder(2, SHAPE, (8,)), torch.nn.Identity()))
    yield Bad("encoders", "a score of images of another size",
              lambda: Bernoulli().score(torch.zeros(1, 2, 8), torch.zeros(2, 4)))
    yield Bad("encoders", "convolutions for vlae",
              lambda: VAE(LaplaceEncoder(trunk, 8, 2), ConvDecoder(2, (1, 8, 8), 8), Bernoulli()))
    for shape in ((1, 7, 7), (1, 8, 16), (1, 4, 4), (1, 12, 12)):
        yield Bad("networks", f"conv_trunk {shape}", partial(conv_trunk, shape))
        yield Bad("networks", f"ConvDecoder {shape}", partial(ConvDecoder, 2, shape))
    for hidden in ((0,), (-1,), (8, 0)):
        yield Bad("networks", f"mlp_trunk {hidden}", partial(mlp_trunk, SHAPE, hidden))
        yield Bad("networks", f"mlp_decoder {hidden}", partial(mlp_decoder, 2, SHAPE, hidden))
    yield Bad("networks", "mlp_decoder without layers", partial(mlp_decoder, 2, SHAPE, ()))
    for z in (0, -1):
        yield Bad("networks", f"mlp_decoder z_dim={z}", partial(mlp_decoder, z, SHAPE, (8,)))


def wrong_posteriors() -> Iterator[Bad]:
    "Posteriors whose parts have shapes or kinds that do not fit."
    t = torch.zeros
    pairs = [(t(3, 2), t(3)), (t(3, 2), t(2)), (t(3, 2), t(3, 1)), (t(3, 2), t(1, 2)), (t(3, 2), t(3, 3)),
             (t(2), t(2)), (t(1, 3, 2), t(1, 3, 2)), (t(3, 2), 0.0), (t(3, 2), None),
             (t(3, 2), np.zeros((3, 2))), (None, t(3, 2)), (t(3, 2).long(), t(3, 2)),
             (t(3, 2), t(3, 2).long())]
    for mu, s in pairs:
        yield Bad("posteriors", f"DiagonalGaussian {shape_of(mu)} {shape_of(s)}",
                  partial(DiagonalGaussian, mu, s))
    for mu, L in ((t(3, 2), t(3, 2)), (t(3, 2), t(2, 2)), (t(3, 2), t(1, 2, 2)), (t(3, 2), t(3, 2, 3)),
                  (t(3, 2), t(3, 3, 3)), (t(2), t(2, 2)), (t(3, 2), None)):
        yield Bad("posteriors", f"FullGaussian {shape_of(mu)} {shape_of(L)}", partial(FullGaussian, mu, L))
    for mu, s, p in ((t(4, 3, 2), t(4, 3, 2), t(4)), (t(4, 3, 2), t(4, 3, 2), t(3, 4)),
                     (t(4, 3, 2), t(3, 2), t(4, 3)), (t(3, 2), t(3, 2), t(3)),
                     (t(4, 3, 2), t(4, 3, 1), t(4, 3)), (t(4, 3, 2), t(4, 3, 2), None)):
        yield Bad("posteriors", f"GaussianMixture {shape_of(mu)} {shape_of(s)} {shape_of(p)}",
                  partial(GaussianMixture, mu, s, p))
    for q in (DiagonalGaussian(t(3, 2), t(3, 2)),
              FullGaussian(t(3, 2), torch.eye(2).expand(3, 2, 2)),
              GaussianMixture(t(4, 3, 2), t(4, 3, 2), t(4, 3) - np.log(4))):
        for factor in (0.0, -1.0, NAN, INF):
            yield Bad("posteriors", f"{type(q).__name__} inflated by {factor}", partial(q.inflate, factor))


def shape_of(a: object) -> object:
    return tuple(a.shape) if hasattr(a, "shape") else a


# --- pixels and the numbers that judge ------------------------------------------------------------


def toy() -> VAE:
    return VAE(GPEncoder(mlp_trunk(SHAPE, (8,)), 8, 2), mlp_decoder(2, SHAPE, (8,)), Bernoulli())


ANNEALING = AISConfig(2, 2, 1)
CLIMB = Climb(steps=2)


def judges() -> dict[str, Callable]:
    "What takes images: model, pixels, binarisation."
    config = TrainConfig(epochs=1, batch_size=2)
    good = torch.randint(0, 2, (4, *SHAPE), dtype=torch.uint8) * 255
    return {"evaluate": lambda m, x, b: evaluate(m, x, 2, b),
            "ais": lambda m, x, b: ais(m, x, ANNEALING, b),
            "measure_gaps": lambda m, x, b: measure_gaps(m, x, ANNEALING, CLIMB, b, 2),
            "best_gaussians": lambda m, x, b: best_gaussians(m, x, CLIMB, b, 2),
            "train on": lambda m, x, b: train(m, x, good, b, config, bar=False),
            "train, validated on": lambda m, x, b: train(m, good, x, b, config, bar=False),
            "validation_bound": validation_bound,
            "scores": scores,
            "iwae_by_width": lambda m, x, b: iwae_by_width(m, x, 2, b),
            "to_float": lambda m, x, b: to_float(x, b)}


def wrong_pixels() -> Iterator[Bad]:
    "Pixels of another kind, range or shape."
    u8 = torch.arange(64, dtype=torch.uint8).reshape(4, *SHAPE) * 4
    dark, unit = (u8 > 100).to(torch.uint8), u8 / 255
    cases = [("floats as static", unit, "static"),
             ("floats as none", unit, "none"),
             ("bool", dark.bool(), "static"),
             ("int64", u8.long(), "static"),
             ("int8", (u8 // 2).to(torch.int8), "none"),
             ("0/1", dark, "static"),
             ("0/1 as none", dark, "none"),
             ("NaN", unit * NAN, "floats"),
             ("floats to 255", u8.float(), "floats"),
             ("negative floats", -unit, "floats"),
             ("uint8 as floats", u8, "floats"),
             ("no images", u8[:0], "static"),
             ("no channel", u8[:, 0], "static"),
             ("another size", u8[..., :3], "static"),
             ("flat", u8.flatten(), "static"),
             ("numpy", u8.numpy(), "static"),
             ("list", u8.tolist(), "static"),
             ("nothing", None, "static"),
             ("unknown", u8, "statik"),
             ("None", u8, None),
             ("fixed", u8, "fixed"),
             ("complex", unit.to(torch.complex64), "floats")]
    of_shape = ("another size", "no channel", "flat", "no images")
    for judge, call in judges().items():
        for name, x, b in cases:
            if judge == "to_float" and (name in of_shape or name.startswith("0/1")):
                continue  # a batch may have any shape, and be black
            yield Bad("pixels", f"{judge}: {name}", lambda call=call, x=x, b=b: call(toy(), x, b))


def wrong_numbers() -> Iterator[Bad]:
    "Numbers that say how to judge and to train."
    u8 = torch.arange(64, dtype=torch.uint8).reshape(4, *SHAPE) * 4
    for name, values in dict(k=[0, -1, 1.5, NAN, "x", None, True], batch_size=[0, -1, 1.5, "x"],
                             inflation=[0.0, -1.0, NAN, INF, "x"], seed=[-(2**70), 1.5, "x", 2**70],
                             rows=[-1, 0.5, "x"]).items():
        for v in values:
            yield Bad("evaluate's numbers", f"{name}={v!r}",
                      lambda name=name, v=v: evaluate(toy(), u8, **{"k": 2, name: v}))
    configs = {AISConfig: dict(temperatures=[0, -1, 1.5, NAN, "x", True], chains=[0, -1, 1.5, "x"],
                               leapfrog_steps=[0, 1.5, "x"], schedule=["x", None, 5], start=["x", None],
                               acceptance=[0.0, 1.0, -1.0, NAN, "x"], seed=["x", 1.5, -1]),
               Climb: dict(family=["x", None], steps=[0, -1, 1.5, NAN, "x"],
                           step_size=[0.0, -1.0, NAN, INF, "x"], inner_samples=[0, 1.5, "x"], every=[0, 1.5],
                           look_samples=[0, 1.5], cuts=[0, "x"], tolerance=[NAN, -1.0, "x"]),
               GapSettings: dict(samples=[0, 1.5, "x"],
                                 k=[0, NAN, "x"],
                                 widths=[(), (2.0,), (1.0, 0.0), (1.0, NAN), (1.0, -1.0), 5],
                                 simulated=[0, "x"],
                                 chunk=[0, -1, 1.5])}
    for cls, options in configs.items():
        for name, values in options.items():
            for v in values:
                yield Bad("settings of judges", f"{cls.__name__} {name}={v!r}",
                          lambda cls=cls, name=name, v=v: cls(**{name: v}))
    others = [("measure_gaps parts",
               lambda: measure_gaps(toy(), u8, ANNEALING, CLIMB, "none", 2, parts=["x"])),
              ("measure_gaps samples=0", lambda: measure_gaps(toy(), u8, ANNEALING, CLIMB, "none", 0)),
              ("measure_gaps batch_size=0",
               lambda: measure_gaps(toy(), u8, ANNEALING, CLIMB, "none", 2, batch_size=0)),
              ("measure_gaps first=-1",
               lambda: measure_gaps(toy(), u8, ANNEALING, CLIMB, "none", 2, first=-1)),
              ("ais index", lambda: ais(toy(), u8, ANNEALING, "none", index=[0])),
              ("ais index of floats", lambda: ais(toy(), u8, ANNEALING, "none", index=[0.5] * 4)),
              ("ais path", lambda: ais(toy(), u8, ANNEALING, "none", path=Path("/nowhere/a"))),
              ("ais rows", lambda: ais(toy(), u8, ANNEALING, "none", rows="x")),
              ("ais q0", lambda: ais(toy(), u8, ANNEALING, "none", q0=5)),
              ("ais q0 of one image",
               lambda: ais(toy(), u8, ANNEALING, "none",
                           q0=DiagonalGaussian(torch.zeros(1, 2), torch.zeros(1, 2)))),
              ("sandwich of nothing", lambda: sandwich(toy(), 0, SHAPE, ANNEALING)),
              ("milliseconds", lambda: milliseconds(lambda: 0, 0)),
              ("iwae_by_width 0", lambda: iwae_by_width(toy(), u8, 2, "none", (0.0,))),
              ("iwae_by_width k=0", lambda: iwae_by_width(toy(), u8, 0, "none")),
              ("scores batch_size=0", lambda: scores(toy(), u8, "none", 0)),
              ("best_gaussians samples=0", lambda: best_gaussians(toy(), u8, CLIMB, "none", 0)),
              ("validation_bound batch_size=0", lambda: validation_bound(toy(), u8, "none", 0)),
              ("posterior of nothing", lambda: toy().posterior(torch.zeros(0, *SHAPE)))]
    yield from (Bad("other numbers", name, call) for name, call in others)
    for name, values in dict(epochs=[0, -1, 1.5, "x"], batch_size=[0, -1, 1.5, "x"], lr=[0.0, -1.0, NAN, "x"],
                             max_norm=[0.0, -1.0, NAN], n_samples=[0, 1.5], seed=["x", -2, 2**70],
                             patience=[0, -1], lr_factor=[NAN, -1.0], weight_decay=[-1.0, NAN],
                             kl_warmup=[NAN, -1, "x"], noise_warmup=[NAN, "x"],
                             milestones=[5, ("x",)]).items():
        for v in values:
            yield Bad("TrainConfig", f"{name}={v!r}",
                      lambda name=name, v=v: train(toy(), u8, u8, "stochastic",
                                                   TrainConfig(**{"epochs": 1, "batch_size": 2, name: v}),
                                                   bar=False))


# --- files of images ------------------------------------------------------------------------------


def wrong_files() -> Iterator[Bad]:
    "Files that hold no set of images."
    x = np.random.RandomState(0).randint(0, 256, (30, 6, 6, 1)).astype(np.uint8)
    odd, y = np.empty(2, object), np.arange(30)
    odd[:] = [x[0], x[0][:3]]
    cases = {"floats": dict(x_train=x / 255, x_test=x),
             "bool": dict(x_train=x > 9, x_test=x),
             "int64": dict(x_train=x.astype(int), x_test=x),
             "0/1": dict(x_train=x % 2, x_test=x % 2),
             "objects": dict(x_train=odd, x_test=x),
             "empty test": dict(x_train=x, x_test=x[:0]),
             "empty train": dict(x_train=x[:0], x_test=x),
             "no test": dict(x_train=x),
             "no train": dict(x_test=x),
             "no array": {},
             "one image": dict(x_train=x[:1], x_test=x),
             "no channel": dict(x_train=x[..., 0], x_test=x[..., 0]),
             "channels first": dict(x_train=x.transpose(0, 3, 1, 2), x_test=x.transpose(0, 3, 1, 2)),
             "two channels": dict(x_train=x.repeat(2, -1), x_test=x.repeat(2, -1)),
             "four channels": dict(x_train=x.repeat(4, -1), x_test=x.repeat(4, -1)),
             "two sizes": dict(x_train=x, x_test=x[:, :5]),
             "grey and colour": dict(x_train=x, x_test=x.repeat(3, -1)),
             "no pixels": dict(x_train=x[:, :0], x_test=x[:, :0]),
             "few labels": dict(x_train=x, x_test=x, y_train=y[:3]),
             "labels in floats": dict(x_train=x, x_test=x, y_train=y / 2),
             "labels without images": dict(x_train=x, x_test=x, y_valid=y),
             "labels in words": dict(x_train=x, x_test=x, y_test=y.astype(str)),
             "empty valid": dict(x_train=x, x_test=x, x_valid=x[:0]),
             "floats in valid": dict(x_train=x, x_test=x, x_valid=x / 255),
             "a number": dict(x_train=np.uint8(3), x_test=x),
             "words": dict(x_train=np.array(["a"]), x_test=x)}

    def saved(arrays, change=lambda b: b, name="mine.npz"):
        path = Path(os.environ["GPVAE_DATA"]) / name
        np.savez(path, **arrays)
        path.write_bytes(change(path.read_bytes()))
        try:
            return load(path)
        finally:
            path.unlink()

    for name, arrays in cases.items():
        yield Bad("files of images", name, partial(saved, arrays))
    good = dict(x_train=x, x_test=x)
    for n in (0, 1, 4, 30, 200, 1000, -30, -1):
        yield Bad("files of images", f"cut at {n}", partial(saved, good, lambda b, n=n: b[:n]))
    for i in (0, 300, 900, 1500):
        yield Bad("files of images", f"zeros at {i}",
                  partial(saved, good, lambda b, i=i: b[:i] + bytes(64) + b[i + 64 :]))
    for text in (b"x", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04."):
        yield Bad("files of images", f"{text!r}", partial(saved, good, lambda b, text=text: text * 20))
    for key in ("n_train", "n_valid"):
        for n in (0, -1, 1.5, True, "x", 10**6, NAN, [3]):
            yield Bad("load's numbers", f"{key}={n!r}", lambda key=key, n=n: load("digits", **{key: n}))
    for name in ("digitz", "", "nowhere.npz", None, 5, "a\nb", "../../etc/passwd", "a\0b", "x" * 5000, [],
                 b"digits", True):
        yield Bad("load's names", repr(name)[:40], partial(load, name))
    for root in ("/proc/nowhere", "/dev/null", "a\0b", 5):
        yield Bad("load's roots", repr(root), partial(load, "digits", root))
    digits = load("digits")
    for b in ("static", "statik", None, 5, ""):
        yield Bad("prepare_splits", repr(b), partial(prepare_splits, digits, b))


# --- commands -------------------------------------------------------------------------------------


def said(*argv: str) -> str:
    "Raise `InputError` with the message of a refused command; else return what happened."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = command(argv)
        except SystemExit as e:
            status = e.code
    if status == 2 and not out.getvalue():
        raise InputError(err.getvalue().removesuffix("\n"))
    return f"status {status}: {out.getvalue()}{err.getvalue()}"


def words(table: str) -> list[list[str]]:
    "Arguments of commands, of which | separates one call from the next."
    return [shlex.split(call) for call in table.split("|")]


SHARED = words("""
    --dataset digitz | --dataset /nowhere/a.npz | --dataset | --budget cpuu | --device tpu |
    --device cuda:99 | --device cuda | --device '' | --device cpu:x | --device mps | --runs | --nonsense |
    --nonsense 3 | word | --quiet yes | --data digits | --set | --set '' | --set = | --set =3 | --set epochs |
    --set epochs= | --set epochs=0 | --set 'epochs=__import__('"'"'os'"'"')' | --set lr=1e999 | --set lr=-1 |
    --set lr=nan | --set hidden=8 | --set 'hidden=()' | --set 'hidden=(8,' | --set 'milestones=(3.,2.)' |
    --set epochs=3 --set epochs=4 | --set covariance=x | --set batch_size=0 | --set k=0 |
    --likelihood normal | --set n_train=0 | --set n_train=x | --set n_train=99999
""") + [["--dataset", "a\nb"], ["--set", "hidden=(8,8)\nlr=3"], ["--set", "epochs=" + "(" * 500]]
RUN = words("""
    --dataset '' | --budget '' | --method vea | --method '' | --z_dim 0 | --z_dim -2 | --z_dim 1.5 |
    --z_dim x | --z_dim nan | --z_dim 18446744073709551616 | --z_dim 100000000 | --seed -1 | --seed x |
    --seed 1e3 | --seed 18446744073709551616 | --binarisation static | --binarisation none |
    --binarisation x | --set network=conv --method vlae | --position x | --runs /proc/nowhere |
    --runs /dev/null/a | --set dropout=1. --method vae-dropout | --spec '{' | --spec '[]' |
    --spec '{"z": 3}'
""")
PAGED = words("""
    --methods | --methods vea | --methods '' | --methods vae gpvea | --out /proc/nowhere | --out /dev/null/a |
    --out | --jobs 0 | --jobs -1 | --jobs x | --seeds 0 | --seeds x | --seeds -1 | --seeds 10000000 |
    --z_dims 0 | --z_dims x | --z_dims 1e3 | --study x | --study .. | --study /nowhere.json
""") + [["--z_dims", "9" * 5000]]
GAP = words("""
    --seed -1 | --seed x | --seed 3 | --test 0 | --test 1 | --test x | --train 1 | --valid 0 | --valid -5 |
    --temperatures 0 | --temperatures x | --chains 0 | --chains -1
""")


def wrong_commands() -> Iterator[Bad]:
    "Options of the commands."
    out = lambda: ["--out", str(Path(os.environ["GPVAE_RUNS"]).parent / "out")]
    for argv in [*SHARED, *RUN]:
        yield Bad("gpvae run", " ".join(argv)[:60], partial(said, "run", "--quiet", *argv))
    # Without a method there is nothing to train, should a bad option be taken
    for argv in [*SHARED, *PAGED]:
        yield Bad("gpvae reproduce", " ".join(argv)[:60], lambda argv=argv: said(
            "reproduce", *out(), *([] if "--study" in argv else ["--methods", "gpvae"]), *argv, "--quiet"
        ))
    for argv in [*SHARED, *PAGED, *GAP]:
        yield Bad("gpvae gap", " ".join(argv)[:60], lambda argv=argv: said("gap", *out(), *argv, "--quiet"))
    for argv in [*SHARED, *PAGED]:
        if argv[0] in ("--device", "--out", "--jobs"):
            continue  # nothing is started
        yield Bad("gpvae plan", " ".join(argv)[:60], lambda argv=argv: said("plan", *argv, "--quiet"))
    for words in (dict(budget="x"), dict(methods=["x"]), dict(seeds=0), dict(z_dims=[0.5]),
                  dict(z_dims=[True]), dict(study="digits", seeds=2), dict(settings="lr")):
        yield Bad("studies", repr(words), partial(parse_study, **words))


TABLES = (wrong_settings, wrong_identities, wrong_options, wrong_encoders, wrong_posteriors, wrong_pixels,
          wrong_numbers, wrong_files, wrong_commands)


def no_training(*args, **kwargs):
    raise AssertionError("a run has started")


def main(every: int) -> int:
    from unittest import mock

    tally = Tally()
    with (tempfile.TemporaryDirectory() as folder, mock.patch("gpvae.study.run.train", no_training),
          mock.patch("gpvae.study.launch.Launcher.start", no_training)):
        for name in ("GPVAE_DATA", "GPVAE_RUNS"):
            os.environ[name] = str(Path(folder) / name)
            Path(os.environ[name]).mkdir()
        bad = [b for table in TABLES for b in table()]
        for b in bad[::every]:
            tally.add(b.kind, b.name, outcome(b.call))
    return tally.report("bad input")
