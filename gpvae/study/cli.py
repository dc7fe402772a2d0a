"""The command `gpvae`: run, refit, plan, reproduce, gap, snakefile and judge.

Nothing heavy is imported before the arguments are read, so that `--help` answers at once."""
import argparse
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path


class Parser(argparse.ArgumentParser):
    "Arguments of a command; a mistake is one line."

    def option(self, name: str, text: str, default: object = None, **more) -> None:
        "An option; its default stands in its help unless `text` says what happens without it."
        shown = " (default: %(default)s)" if default not in (None, "", (), []) else ""
        more |= {"type": int} if isinstance(default, int) else {}
        self.add_argument(f"--{name}", default=default, help=text + shown, **more)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {' '.join(message.split())}: see {self.prog} --help\n")


def make_parser() -> Parser:
    "Arguments of all commands."
    everywhere, study, several = (Parser(add_help=False, allow_abbrev=False) for _ in range(3))
    everywhere.option("device", "cpu or cuda (default: a GPU if there is one)")
    everywhere.option("runs", "folder of the runs (default: GPVAE_RUNS, else the user's cache)")
    everywhere.add_argument("--quiet", action="store_true", help="no progress bars")
    dataset, budget = "name of an image set, or the path of an .npz", "smoke, cpu, paper or published"
    likelihood = "bernoulli, gaussian or gaussian-pixel (default: the image set's)"
    study.option("study", "a study by name or a study.json, instead of the options down to --set", "")
    study.option("dataset", f"{dataset} (default: digits)", "")
    study.option("budget", f"{budget} (default: smoke)", "")
    study.option("methods", "encoders (default: those of the budget)", (), nargs="+")
    study.option("z-dims", "latent dimensions (default: those of the budget)", (), nargs="+")
    study.option("seeds", "seeds of every method (default: those of the budget)", "")
    study.option("likelihood", likelihood, "")
    change = "change a setting of the budget or an option of the method; may be repeated"
    settings = dict(action="append", dest="settings", metavar="KEY=VALUE")
    study.option("set", change, [], **settings)
    study.option("out", "folder of rows and page (default: GPVAE_RESULTS, else ./results)")
    several.option("jobs", "runs side by side", 2)

    parser = Parser("gpvae", description="Train, judge and compare the encoders of variational autoencoders.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def add(call: Callable, *parents: Parser) -> Parser:
        command = commands.add_parser(call.__name__.split("_")[0], parents=parents, allow_abbrev=False,
                                      help=call.__doc__, description=call.__doc__)
        command.set_defaults(call=call)
        return command

    run = add(run_model, everywhere)
    run.option("dataset", dataset, "digits")
    run.option("method", "encoder; an unknown name lists them all", "gpvae")
    run.option("z-dim", "latent dimensions", 20)
    run.option("seed", "of initialisation, order of the images and noise", 0)
    run.option("budget", budget, "smoke")
    run.option("likelihood", likelihood)
    run.option("binarisation", "static, fixed, stochastic or none (default: the image set's)")
    run.option("set", change, [], **settings)
    run.option("spec", "a specification as JSON, instead of the options down to --set", type=json_object)
    run.option("position", "line of the terminal for the progress bar", 0)
    run.add_argument("--attached", action="store_true",
                     help="end when standard input is closed; errors go to standard output")
    refit = add(refit_encoder, everywhere)
    refit.add_argument("run", help="id or folder of the run")
    refit.option("method", "another encoder on the same decoder (default: the run's); with --set start=new "
                 "where the trained weights do not fit it")
    refit.option("set", "change a setting of the refit, as in dreams=0.5; may be repeated", [], **settings)
    add(plan_study, study, several, everywhere).option("write", "write the study into this study.json")
    add(reproduce_study, study, several, everywhere)
    gap = add(gap_page, study, several, everywhere)
    gap.option("test", "test images", 500)
    gap.option("train", "training images", 200)
    gap.option("valid", "validation images", 300)
    gap.option("seed", "of the runs", 0)
    gap.option("temperatures", "steps of the annealing", 50)
    gap.option("chains", "of the annealing", 8)
    add(snakefile_path)
    judge = add(judge_model)
    judge.add_argument("model", metavar="MODULE:FUNCTION",
                       help="a function without arguments that returns the model")
    judge.add_argument("data", help="an .npz with x_test and perhaps x_train, [N, ...]")
    judge.option("write", "the page", "judge.html")
    judge.option("path", "folder that keeps what is done, so that a killed call continues")
    judge.option("k", "importance samples of IWAE", 100)
    judge.option("gaps", "data whose gaps are measured", 100)
    judge.option("likelihoods", "data whose log p(x) is estimated", 1000)
    judge.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def json_object(text: str) -> dict:
    "A JSON object; `ValueError` for anything else."
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


def run_model(args: argparse.Namespace) -> int:
    "Train, judge and record one model; a finished run is opened, a killed one continues."
    if args.attached:
        threading.Thread(target=end_with_parent, daemon=True).start()
    from gpvae.study.config import RunSpec
    from gpvae.study.run import run
    from gpvae.study.settings import parse_setting
    if args.spec is None:
        spec = RunSpec(args.dataset, args.method, args.z_dim, args.seed, args.budget, args.likelihood,
                       args.binarisation, list(map(parse_setting, args.settings)))
    else:
        spec = RunSpec.from_json(args.spec)
    result = run(spec, args.runs, args.device, not args.quiet, args.position)
    for name, value in (result.row | {"folder": result.folder}).items():
        print(f"{name:15} {value}")
    return 0


def refit_encoder(args: argparse.Namespace) -> int:
    "Train the encoder of a finished run on, with images drawn from the model; the decoder stays frozen."
    from gpvae.checks import require
    from gpvae.study.config import refit_of
    from gpvae.study.run import is_finished, open_run, run, runs_root
    from gpvae.study.settings import parse_setting
    folder = next(filter(is_finished, (Path(args.run).absolute(), runs_root(args.runs) / args.run)), None)
    require(folder is not None, f"{args.run} is no finished run: give its id or its folder")
    changes = dict(map(parse_setting, args.settings))
    require(len(changes) == len(args.settings), f"{', '.join(args.settings)}: give each setting once")
    before = open_run(folder)
    spec = refit_of(before.config.spec, args.method, **changes)
    after = run(spec, folder.parent, args.device, not args.quiet)
    for name in ("elbo", "iwae"):
        print(f"{name:15} {before.row[name]:9.2f} {after.row[name]:9.2f} nats per image")
    print(f"{'folder':15} {after.folder}")
    return 0


def named_study(args: argparse.Namespace):
    "The study that the arguments name, and the store of its rows."
    from gpvae.study.store import Store
    from gpvae.study.studies import parse_study
    names = ("study", "dataset", "budget", "methods", "z_dims", "seeds", "likelihood", "settings")
    return parse_study(**{name: getattr(args, name) for name in names}), Store(args.out)


def plan_study(args: argparse.Namespace) -> int:
    "Print what is finished, what is missing and how long that takes; nothing is started."
    study, store = named_study(args)
    from gpvae.study.launch import describe_plan, plan
    table = plan(study, store, args.runs)
    if args.write:
        study.write(Path(args.write))
    print(table.round(2).to_string(), describe_plan(table, args.jobs), sep="\n")
    return 0


def train_study(args: argparse.Namespace, study, store, folders: bool = False  # as for `launch.missing`
                ) -> int:                                                      # exit status
    "Train what a study lacks; what fails is printed."
    from gpvae.study.launch import check_start, describe_plan, finish, plan
    check_start(store, args.jobs, args.device)
    print(describe_plan(plan(study, store, args.runs, folders), args.jobs), flush=True)
    failures = finish(study, store, args.runs, args.jobs, args.device, not args.quiet, folders)
    for failure in failures:
        print(f"gpvae {args.command}: {failure}", file=sys.stderr)
    return 2 if failures else 0


def reproduce_study(args: argparse.Namespace) -> int:
    "Train what is missing of a study, keep its rows and write its page; a killed call continues."
    study, store = named_study(args)
    from gpvae.study.report import check_rendering, page_name, render
    from gpvae.study.tables import likelihoods
    check_rendering("reproduce")
    page_name(study)  # before anything is trained
    status, results = train_study(args, study, store), study.results(store)
    if len(results.rows):
        page = render(study, store)
        print(likelihoods(results).to_string(), page, sep="\n")
    return status


def gap_page(args: argparse.Namespace) -> int:
    "Measure the gaps of one run of each method, trained where it is missing, and write their page."
    study, store = named_study(args)
    from gpvae.evaluation.ais import AISConfig
    from gpvae.study.gaps import GapSettings, check_counts, measure
    from gpvae.study.gap_tables import decomposition
    from gpvae.study.report import check_rendering, page_name, render
    check_rendering("gap")
    page_name(study, "gap")
    settings = GapSettings(AISConfig(args.temperatures, args.chains, start="best"))
    counts = {split: getattr(args, split) for split in ("test", "train", "valid")}
    check_counts(counts)
    if train_study(args, study.of_seed(args.seed), store, folders=True):
        return 2
    measure(study, store, args.runs, counts, settings, args.seed, args.device, not args.quiet)
    page = render(study, store, template="gap")
    print(decomposition(study.results(store)).to_string(), page, sep="\n")
    return 0


def snakefile_path(args: argparse.Namespace) -> int:
    "Print the path of a Snakemake workflow that makes a study on a cluster, one run a job."
    print(Path(__file__).with_name("Snakefile"))
    return 0


def judge_model(args: argparse.Namespace) -> int:
    "Say how good the inference of a model of your own is, what it fails on and what would help."
    import importlib
    import zipfile

    from gpvae.checks import InputError, require
    module, _, function = args.model.partition(":")
    require(bool(module and function), f"{args.model} is not MODULE:FUNCTION, such as train:load_model")
    sys.path.insert(0, os.getcwd())  # where the user's module lies
    try:
        load_model = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as e:
        raise InputError(f"{args.model}: {e}") from e
    import numpy as np
    import torch

    from gpvae.judge import Effort, judge
    try:
        with np.load(args.data) as arrays:
            data = {name: torch.from_numpy(arrays[name]) for name in ("x_test", "x_train") if name in arrays}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise InputError(f"{args.data} is no .npz of numbers ({e})") from e
    require("x_test" in data, f"{args.data} has no x_test: np.savez(path, x_test=..., x_train=...) saves it")
    effort = Effort(k=args.k, gaps=args.gaps, likelihoods=args.likelihoods)
    report = judge(load_model(), data["x_test"], data.get("x_train"), effort=effort, path=args.path,
                   bar=not args.quiet)
    print(report, report.table.round(2).to_string(), report.to_html(args.write).absolute(), sep="\n")
    return 0


class Terminated(KeyboardInterrupt):
    "SIGTERM was received."


def terminate(number: int, frame: object) -> None:
    "Raise `Terminated`, once."
    signal.signal(number, signal.SIG_IGN)
    raise Terminated


def end_with_parent() -> None:
    "Send this process SIGTERM as soon as its standard input is closed."
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(argv: Sequence[str] | None = None  # None: those of the process; `gpvae_run` is `gpvae run`
         ) -> int:                          # exit status
    "Run a command: 0, or 2 with one line that says what is wrong, or 130 or 143 where it was ended."
    program, words = Path(sys.argv[0]).stem, sys.argv[1:] if argv is None else list(argv)
    if argv is None and program.startswith("gpvae_"):
        words.insert(0, program.removeprefix("gpvae_"))
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a terminal may lack the signs of a message
        getattr(stream, "reconfigure", lambda errors: None)(errors="replace")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = make_parser().parse_args([with_hyphens(word) for word in words])
    from gpvae.checks import InputError
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if in_main else None
    try:
        status = args.call(args)
        print(end="", flush=True)
        return status
    except (InputError, FloatingPointError) as e:
        message, status = " ".join(str(e).split()), 2
    except Terminated:
        message, status = "ended; the same command continues", 143
    except KeyboardInterrupt:
        message, status = "interrupted; the same command continues", 130
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
    attached = getattr(args, "attached", False)
    print(f"gpvae {args.command}: {message}", file=sys.stdout if attached else sys.stderr)
    return status


def with_hyphens(word: str) -> str:
    "`--z_dims` as `--z-dims`; a value stays as it is."
    return re.sub("^--[^=]+", lambda name: name[0].replace("_", "-"), word)


if __name__ == "__main__":
    sys.exit(main())
