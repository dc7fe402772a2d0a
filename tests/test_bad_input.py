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

# One of each kind of refusal; `faults inputs` tries every setting of every method.
WRONG = {
    "static grey": (["--binarisation", "static"], "digits has grey pixels in x_train, choose fixed or stoch"),
    "negative latents": (["--z_dim", "-3"], "z_dim is -3: "),
    "no samples": (["--set", "k=0"], "k is 0: it must be at least 1"),
    "too many": (["--set", "n_train=5000"], "n_train is 5000: digits has 1300 such images, pass 1 to 1300"),
    "fraction of an epoch": (["--set", "epochs=1.5"], "setting epochs=1.5: expected"),
    "number for widths": (["--set", "hidden=200"], "setting hidden=200: expected something like (200, 200)"),
    "infinite step size": (["--set", "lr=1e999"], "setting lr=inf: expected something like 0.001"),
    "factor above one": (["--set", "lr_factor=3."], "lr_factor is 3.0: it must be at most 1"),
    "no norm": (["--set", "max_norm=0"], "max_norm is 0.0: it must be positive"),
    "all dropped": (["--method", "vae-dropout", "--set", "dropout=1.0"],
                    "dropout is 1.0: it must be at least 0 and below 1"),
    "falling milestones": (["--set", "milestones=(9.,3.)"],
                           "milestones is (9.0, 3.0): the epochs must increase"),
    "negative milestones": (["--set", "milestones=(-3.,)"], "milestones[0] is -3.0: it must be at least 0"),
    "lost setting": (["--set", "warm_start=vae"], "'warm_start' is unknown"),
    "network": (["--set", "network=convv"], "network 'convv' is unknown: did you mean 'conv'?"),
    "mode": (["--set", "mode=marginall"], "test-time mode 'marginall' is unknown: did you mean 'marginal'?"),
    "convolutional decoder": (["--method", "vlae", "--set", "network=conv"], "vlae linearises decoders of "
                              "Linear and ReLU layers, and this one holds a ConvDecoder: use network="),
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


def pixels(n):
    return np.random.RandomState(0).randint(0, 256, (n, 8, 8, 1)).astype(np.uint8)


@pytest.fixture
def root(tmp_path, monkeypatch):
    "An empty folder for image sets."
    monkeypatch.setenv("GPVAE_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("by_name", [True, False])
def test_file_refused(capsys, runs, root, no_training, by_name):
    "Before a folder is made; tests/test_data.py has every fault of a file."
    file = root / "mine.npz"
    np.savez(file, x_train=pixels(120) / 255, x_test=pixels(30))
    message = refused(capsys, "--dataset", "mine" if by_name else str(file))
    assert f"x_train of {file} is float64: pixels must be uint8, 0…255" in message
    assert not list(runs.rglob("*")) and not list((root / "prepared").glob("*"))


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


def test_nan_in_the_weights(runs, monkeypatch):
    path = stopped(SPEC, runs, monkeypatch)

    def spoil(tensors):
        tensors["model.decoder.0.weight"][3, 1] = float("nan")

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


def test_truncated_checkpoint(runs, monkeypatch):
    path = stopped(SPEC, runs, monkeypatch)
    path.write_bytes(path.read_bytes()[:1000])
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
