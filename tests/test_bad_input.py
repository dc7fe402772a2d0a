"Input that cannot work is refused before any training, by one line that says what, where and what to do."

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gpvae.checks import InputError
from gpvae.files import read_tensors, write_tensors
from gpvae.likelihoods import Bernoulli
from gpvae.networks import ConvDecoder, conv_trunk, mlp_decoder, mlp_trunk
from gpvae.study.cli import main
from gpvae.study.config import RunSpec, resolve
from gpvae.study.run import run
from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.vae import VAE

SETTINGS = dict(epochs=2, hidden=(8, 8), n_test=20, k=2, n_train=100)
TINY = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
SPEC = RunSpec(method="vae", settings=SETTINGS)


@pytest.fixture
def no_training(monkeypatch):
    "A step of training is a failure of the test."

    def step(*args):
        raise AssertionError("training has started")

    monkeypatch.setattr("gpvae.study.run.train_run", step)


def refused(capsys, *args):
    "The one line that the command prints."
    capsys.readouterr()
    given = [word.partition("=")[0] for word in args]
    pairs = [w for k, w in zip(TINY[::2], TINY[1::2]) if w.partition("=")[0] not in given for w in (k, w)]
    assert main(["run", *pairs, "--device", "cpu", "--quiet", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("gpvae run: ") and err.endswith("\n") and err.count("\n") == 1
    return err


# --- settings -------------------------------------------------------------------------------------

WRONG = {
    "static grey": (
        ["--binarisation", "static"],
        "digits has grey pixels in x_train, choose fixed or stochastic",
    ),
    "negative latents": (["--z_dim", "-3"], "z_dim is -3: "),
    "no samples": (["--set", "k=0"], "k is 0: it must be at least 1"),
    "no epochs": (["--set", "epochs=0"], "epochs is 0: it must be at least 1"),
    "no images": (["--set", "n_train=0"], "n_train is 0: it must be at least 1"),
    "too many images": (
        ["--set", "n_train=5000"],
        "n_train is 5000: digits has 1300 such images, pass 1 to 1300",
    ),
    "too many to validate": (
        ["--set", "n_valid=5000"],
        "n_valid is 5000: digits has 200 such images, pass 1 to 200",
    ),
    "fraction of an epoch": (["--set", "epochs=1.5"], "setting epochs=1.5: expected"),
    "truth for a number": (["--set", "epochs=True"], "setting epochs=True: expected"),
    "number for widths": (["--set", "hidden=200"], "setting hidden=200: expected something like (200, 200)"),
    "step size": (["--set", "lr=fast"], "setting lr='fast': expected"),
    "negative step size": (["--set", "lr=-1."], "lr is -1.0: it must be positive"),
    "infinite step size": (["--set", "lr=1e999"], "setting lr=inf: expected something like 0.001"),
    "negative decay": (["--set", "weight_decay=-0.1"], "weight_decay is -0.1: it must be at least 0"),
    "factor above one": (["--set", "lr_factor=3."], "lr_factor is 3.0: it must be at most 1"),
    "negative warm-up": (["--set", "kl_warmup=-1"], "kl_warmup is -1.0: it must be at least 0"),
    "negative noise warm-up": (["--set", "noise_warmup=-1"], "noise_warmup is -1.0: it must be at least 0"),
    "no patience": (["--set", "patience=0"], "patience is 0: it must be at least 1"),
    "no width of the proposal": (["--set", "inflation=0."], "inflation is 0.0: it must be positive"),
    "no norm": (["--set", "max_norm=0"], "max_norm is 0.0: it must be positive"),
    "all dropped": (
        ["--method", "vae-dropout", "--set", "dropout=1.0"],
        "dropout is 1.0: it must be at least 0 and below 1",
    ),
    "option without end": (
        ["--set", "temperature=1e999"],
        "setting temperature=inf: expected something like 1.0",
    ),
    "falling milestones": (
        ["--set", "milestones=(9.,3.)"],
        "milestones is (9.0, 3.0): the epochs must increase",
    ),
    "negative milestones": (["--set", "milestones=(-3.,)"], "milestones[0] is -3.0: it must be at least 0"),
    "same milestone twice": (["--set", "milestones=(3.,3.)"], "the epochs must increase"),
    "endless number": (["--set", "epochs=1" + 30 * "0"], "setting epochs=1"),
    "lost setting": (["--set", "warm_start=vae"], "'warm_start' is unknown"),
    "lost option": (["--set", "n_draws=2"], "'n_draws' is unknown"),
    "NaN step size": (["--set", "lr=nan"], "setting lr='nan': expected"),
    "width of nothing": (["--set", "hidden=(8,0)"], "hidden[1] is 0: it must be at least 1"),
    "network": (["--set", "network=convv"], "network 'convv' is unknown: did you mean 'conv'?"),
    "covariance": (["--set", "covariance=ful"], "covariance 'ful' is unknown: did you mean 'full'?"),
    "features": (
        ["--set", "features=standard"],
        "features 'standard' is unknown: did you mean 'standardised'?",
    ),
    "mode": (["--set", "mode=marginall"], "test-time mode 'marginall' is unknown: did you mean 'marginal'?"),
    "temperature": (["--set", "temperature=0."], "must be positive"),
    "words for patience": (["--set", "patience=abc"], "setting patience='abc'"),
    "words for widths": (["--set", "hidden=(8,'a')"], "hidden"),
    "no widths": (["--set", "hidden=()"], "hidden"),
    "words for milestones": (["--set", "milestones=('a',)"], "milestones"),
    "empty mixture": (["--set", "n_mixture=0"], "n_mixture"),
    "convolutional decoder": (
        ["--method", "vlae", "--set", "network=conv"],
        "vlae linearises decoders of Linear and ReLU layers, and this one holds a ConvDecoder: use network=",
    ),
    "no solves": (["--method", "vlae", "--set", "n_solves=0"], "n_solves is 0: "),
    "step too long": (["--method", "vlae", "--set", "damping=2."], "damping is 2.0: "),
}


@pytest.mark.parametrize("args, message", WRONG.values(), ids=WRONG)
def test_refused(capsys, runs, no_training, args, message):
    assert message in refused(capsys, *args)
    assert not list(runs.rglob("checkpoint*"))


def test_more_test_images_than_there_are():
    "What the caller asks for is not cut in silence; what a budget names is."
    with pytest.raises(InputError, match="n_test is 5000: digits has 297 such images, pass 1 to 297"):
        resolve(RunSpec("digits", settings=dict(n_test=5000)))
    assert resolve(RunSpec("digits")).data.n_test == 297


def test_exit_status_of_the_commands(tmp_path):
    "The process itself: status 2, one line, no traceback."
    env = os.environ | {"GPVAE_RUNS": str(tmp_path)}
    command = [sys.executable, "-m", "gpvae.study.cli", "run", "--dataset", "digitz"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert (done.stderr.startswith("gpvae run: data set 'digitz' is unknown: did you mean 'digits'?")
            and done.stderr.count("\n") == 1)


# --- files of images ------------------------------------------------------------------------------


def pixels(n, side=8, c=1):
    return np.random.RandomState(0).randint(0, 256, (n, side, side, c)).astype(np.uint8)


def sizes():
    a = np.empty(2, object)
    a[0], a[1] = pixels(1)[0], pixels(1, 6)[0]
    return a


def arrays(kind):
    train, test = pixels(120), pixels(30)
    return {"float pixels": dict(x_train=train / 255, x_test=test),
            "two sizes": dict(x_train=train, x_test=pixels(30, 6)),
            "two sizes in a split": dict(x_train=sizes(), x_test=test),
            "empty split": dict(x_train=train, x_test=test[:0]),
            "no training images": dict(x_train=train[:0], x_test=test),
            "one image": dict(x_train=train[:1], x_test=test),
            "no test images": dict(x_train=train),
            "no channel axis": dict(x_train=train[..., 0], x_test=test[..., 0]),
            "channels first": dict(x_train=train.transpose(0, 3, 1, 2), x_test=test.transpose(0, 3, 1, 2)),
            "labels": dict(x_train=train, x_test=test, y_train=np.arange(3))}[kind]


FILES = {"float pixels": "x_train of {} is float64: pixels must be uint8, 0…255",
         "two sizes": "x_test of {} has images [6, 6, 1], x_train [8, 8, 1]: they must have one size",
         "two sizes in a split": "{} holds arrays of objects: all images must have one size",
         "empty split": "x_test of {} is empty: every split needs at least one image",
         "no training images": "x_train of {} is empty: every split needs at least one image",
         "one image": "one image: without x_valid it needs at least two",
         "no test images": "{} has no x_test: it must hold x_train and x_test",
         "no channel axis": "x_train of {} has shape [120, 8, 8]: it must be [N, H, W, C]",
         "channels first": "images of {} have 8 channels",
         "labels": "y_train of {} is int64 [3]: labels must be 120 integers"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    "An empty folder for image sets."
    monkeypatch.setenv("GPVAE_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("kind", FILES)
def test_file_refused(capsys, runs, root, no_training, kind, by_name):
    file = root / "mine.npz"
    np.savez(file, **arrays(kind))
    assert FILES[kind].format(file) in refused(capsys, "--dataset", "mine" if by_name else str(file))
    assert not list(runs.rglob("*")) and not list((root / "prepared").glob("*"))


@pytest.mark.parametrize("keep", [0, 10, 3000, -100])
def test_truncated_file_refused(capsys, runs, root, no_training, keep):
    file = root / "mine.npz"
    np.savez(file, x_train=pixels(120), x_test=pixels(30))
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file} is damaged or no .npz" in refused(capsys, "--dataset", "mine")


def test_good_file_is_taken(runs, root):
    np.savez(root / "mine.npz", x_train=pixels(120), x_test=pixels(30))
    assert main(["run", *TINY, "--quiet", "--device", "cpu", "--dataset", "mine", "--method", "vae"]) == 0
    assert len(list(runs.glob("*/metrics.json"))) == 1


# --- folders and checkpoints ----------------------------------------------------------------------


def stopped(spec, runs, monkeypatch):
    "A run that was stopped after training, before it was evaluated."
    with monkeypatch.context() as m:

        def stop(*args):
            raise KeyboardInterrupt

        m.setattr("gpvae.study.run.evaluate_run", stop)
        with pytest.raises(KeyboardInterrupt):
            run(spec, runs, "cpu", bar=False)
    return runs / resolve(spec).id / "checkpoint.safetensors"


def rewrite(path, change):
    "Change the tensors of a checkpoint, keep its progress."
    tensors, progress = read_tensors(path)
    change(tensors)
    write_tensors(path, tensors, progress)


def again(spec, runs):
    "The message of a run that is refused."
    with pytest.raises(InputError) as e:
        run(spec, runs, "cpu", bar=False)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_the_weights(runs, monkeypatch, value):
    path = stopped(SPEC, runs, monkeypatch)

    def spoil(tensors):
        tensors["model.decoder.0.weight"][3, 1] = value

    rewrite(path, spoil)
    assert (again(SPEC, runs)
            == f"{path}: model.decoder.0.weight holds NaN or infinity: delete it and run again")


def test_checkpoint_of_another_spec(runs, monkeypatch):
    path, other = (stopped(RunSpec(method="vae", seed=seed, settings=SETTINGS), runs, monkeypatch)
                   for seed in (0, 1))
    path.write_bytes(other.read_bytes())
    message = again(SPEC, runs)
    assert message.startswith(f"{path} is the checkpoint of another training (seed is 0, not 1")
    assert message.endswith("choose another path, or delete it")


@pytest.mark.parametrize("keep", [0, 5, 1000, -10])
def test_truncated_checkpoint(runs, monkeypatch, keep):
    path = stopped(SPEC, runs, monkeypatch)
    path.write_bytes(path.read_bytes()[:keep])
    message = again(SPEC, runs)
    assert message.startswith(f"{path} is damaged") and "delete it and run again" in message


@pytest.mark.parametrize("where", ["below a file", "is a file"])
def test_unwritable_folder(capsys, tmp_path, no_training, where):
    file = tmp_path / "file"
    file.write_text("")
    folder = file / "runs" if where == "below a file" else file
    err = refused(capsys, "--runs", str(folder))
    assert (f"the folder {folder}" in err and "cannot be written" in err
            and "set GPVAE_RUNS or pass another folder" in err)


def test_folder_of_another_process(capsys, runs, no_training):
    folder = runs / resolve(SPEC).id
    folder.mkdir(parents=True)
    hold = "import filelock, sys\nlock = filelock.FileLock(sys.argv[1])\nlock.acquire()\n"
    hold += "print('held', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, folder / ".lock"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        try:
            err = refused(capsys, "--method", "vae")
        finally:
            other.stdin.close()
    assert f"{folder} is in use by another process: wait for it" in err


def test_the_lock_is_given_back(capsys, runs, monkeypatch):
    "Also when a run fails, and while its exception is still at hand."

    def step(*args):
        raise FloatingPointError("step 0: something")

    with monkeypatch.context() as m:
        m.setattr("gpvae.stepper.train_step", step)
        with pytest.raises(FloatingPointError) as kept:
            run(SPEC, runs, "cpu", bar=False)
    assert run(SPEC, runs, "cpu", bar=False).row["epochs"] == 2 and kept.value


def test_loss_that_is_not_finite(capsys, runs):
    err = refused(capsys, "--method", "vae", "--set", "lr=1e18")
    assert ("gpvae run: step " in err
            and "the last good checkpoint is kept, try a smaller lr or max_norm" in err)
    assert not list(runs.rglob("metrics.json"))


# --- images of another size -----------------------------------------------------------------------


class Faulty(AmortizedEncoder):
    "An encoder with a fault of its own, in the words that torch has for a wrong size."

    def forward(self, x, log_joint=None):
        return super().forward(x) if x.sum() else self.b(x)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_images_of_another_size_are_told_from_other_faults(network):
    shape = (1, 8, 8)
    trunk = mlp_trunk(shape, (16,)) if network == "mlp" else conv_trunk(shape, 16, 4)
    decoder = mlp_decoder(2, shape, (16,)) if network == "mlp" else ConvDecoder(2, shape, 16, 4)
    model = VAE(Faulty(trunk, 16, 2), decoder, Bernoulli()).train()
    with pytest.raises(InputError, match=r"^images \[1, 12, 12\] have 144 pixels, the model's 64$"):
        model.posterior(torch.ones(3, 1, 12, 12))
    assert all(part.training for part in model.modules())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        model.posterior(torch.zeros(3, *shape))
