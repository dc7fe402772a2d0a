"Image sets: the table, the prepared copy, the split, binarisation, and every wrong input."
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gpvae import data as gd
from gpvae import sources
from gpvae.checks import InputError
from gpvae.data import check_binarisation, gather, load, prepare_splits
from gpvae.pixels import binarise_fixed, check_pixels, is_binary, pixel_checksum, split_seed, to_float
from gpvae.sources import CHOICES

RNG = np.random.default_rng(0)

def pixels(n, h, w, c): return RNG.integers(0, 256, (n, h, w, c), dtype=np.uint8)

def save(file, **arrays):
    np.savez(file, **arrays)
    return file

def images(*xs): return sorted(bytes(np.ascontiguousarray(i)) for x in xs for i in np.asarray(x))

def fails(match, *args, **kwargs):
    "`load` raises a one-line InputError that matches."
    with pytest.raises(InputError, match=match) as e:
        load(*args, **kwargs)
    assert "\n" not in str(e.value)
    return str(e.value)

@pytest.fixture
def small(tmp_path):
    "A grey set of 40 + 10 images of 6×5 pixels under the root `tmp_path`."
    return save(tmp_path / "small.npz", x_train=pixels(40, 6, 5, 1), y_train=np.arange(40),
                x_test=pixels(10, 6, 5, 1), y_test=np.arange(10))

# --- the default set

def test_digits(tmp_path):
    data = load("digits", tmp_path)
    assert data.x_shape == (1, 8, 8) and data.choice == CHOICES["digits"]
    assert [len(x) for x in (data.x_train, data.x_valid, data.x_test)] == [1300, 200, 297]
    assert (data.x_train.dtype == torch.uint8 and data.x_train.max() == 255
            and data.y_test.dtype == torch.int64)
    whole = sources.fetch_digits(tmp_path)
    assert images(data.x_train, data.x_valid) == images(whole["x_train"].transpose(0, 3, 1, 2))
    assert len(set(data.y_test.tolist())) == 10

def test_digits_are_the_same_everywhere(tmp_path):
    """The pixels and their order are part of every result: a change of this number makes old results
    incomparable."""
    assert load("digits", tmp_path).checksum[:12] == "5cd952ad2424"

def test_checksum_is_of_the_pixels(tmp_path):
    data = load("digits", tmp_path, n_train=10)
    whole = load("digits", tmp_path)
    assert data.checksum == whole.checksum == pixel_checksum([whole.x_train, whole.x_valid, whole.x_test])
    other = whole.x_test.clone()
    other[0, 0, 0, 0] ^= 1
    assert pixel_checksum([whole.x_train, whole.x_valid, other]) != whole.checksum

# --- the prepared copy

def test_second_start_reads_no_source_and_prepares_nothing(tmp_path, monkeypatch):
    save(tmp_path / "mnist.npz", x_train=pixels(900, 28, 28, 1), x_test=pixels(100, 28, 28, 1))
    one = load("mnist", tmp_path)
    for name in ("read_set", "prepare_set", "prepare_image"):
        monkeypatch.setattr(gd, name, None)
    two = load("mnist", tmp_path)
    assert one.checksum == two.checksum and torch.equal(one.x_train, two.x_train)

def test_prepared_copy_does_not_import_torchvision(tmp_path):
    code = (f"import sys; from gpvae.data import load; load('digits', {str(tmp_path)!r}); "
            "assert not {'torchvision', 'pandas', 'matplotlib'} & set(sys.modules)")
    load("digits", tmp_path)
    subprocess.run([sys.executable, "-c", code], check=True)

def test_writing_to_loaded_pixels_leaves_the_copy_alone(tmp_path):
    data = load("digits", tmp_path)
    data.x_train.zero_()
    assert load("digits", tmp_path).x_train.any()

def test_nothing_is_left_beside_the_copy(tmp_path):
    load("digits", tmp_path)
    assert [p.name[:7] for p in (tmp_path / "prepared").iterdir()] == ["digits-"]

def test_changed_file_is_prepared_again(tmp_path, small):
    one = load("small", tmp_path)
    save(small, x_train=pixels(40, 6, 5, 1), x_test=pixels(10, 6, 5, 1))
    assert load("small", tmp_path).checksum != one.checksum

def test_a_file_replaced_at_the_same_size_and_time_is_prepared_again(tmp_path):
    other = lambda: save(tmp_path / "same.npz", x_train=pixels(40, 6, 5, 1), x_test=pixels(10, 6, 5, 1))
    before = os.stat(other())
    one = load("same", tmp_path)
    os.utime(other(), ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(tmp_path / "same.npz")
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    assert load("same", tmp_path).checksum != one.checksum

def test_a_moved_file_is_not_prepared_again(tmp_path, small):
    one = load(small, tmp_path)
    elsewhere = small.rename(tmp_path / "elsewhere.npz").rename(tmp_path / "small.npz")
    os.utime(elsewhere)
    assert load(small, tmp_path).checksum == one.checksum
    assert len(list((tmp_path / "prepared").iterdir())) == 1

def test_changed_row_is_prepared_again(tmp_path, monkeypatch):
    one = load("digits", tmp_path)
    monkeypatch.setitem(CHOICES, "digits", replace(CHOICES["digits"], size=4))
    two = load("digits", tmp_path)
    assert two.x_shape == (1, 4, 4) and one.x_shape == (1, 8, 8) and one.checksum != two.checksum

def test_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(gd, "pixel_checksum", lambda splits: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load("digits", tmp_path)
    assert not list((tmp_path / "prepared").iterdir())

def test_two_processes_prepare_at_once(tmp_path):
    "One waits for the other, and both open its copy."
    context = multiprocessing.get_context("fork")
    both, out = context.Barrier(2), context.Queue()
    def work():
        both.wait()
        out.put((load("digits", tmp_path).checksum, os.stat(next((tmp_path / "prepared").iterdir())).st_ino))
    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    found = {out.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1 and [p.name[:7] for p in (tmp_path / "prepared").iterdir()] == ["digits-"]

@pytest.mark.parametrize("damage", [
    lambda d: (d / "x_train.npy").write_bytes((d / "x_train.npy").read_bytes()[:-100]),
    lambda d: (d / "x_test.npy").unlink(),
    lambda d: (d / "meta.json").write_text("{"),
    lambda d: (d / "meta.json").write_text("{}"),
    lambda d: (d / "meta.json").unlink(),
    lambda d: np.save(d / "x_valid.npy", np.load(d / "x_valid.npy").reshape(50, 1, 16, 16)),
    lambda d: (d / "y_test.npy").write_bytes(bytes((d / "y_test.npy").stat().st_size)),
    lambda d: (d / "x_test.npy").write_bytes((d / "x_valid.npy").read_bytes()),
    lambda d: (d / "meta.json").write_text((d / "meta.json").read_text().replace("bernoulli", "gaussian")),
])
def test_damaged_copy(tmp_path, damage):
    load("digits", tmp_path)
    folder, = (tmp_path / "prepared").iterdir()
    damage(folder)
    assert str(folder) in fails("damaged .* delete this folder", "digits", tmp_path)

@pytest.mark.parametrize("name", ["x_train.npy", "x_test.npy", "y_train.npy", "meta.json"])
def test_every_flipped_bit_of_a_copy_is_found(tmp_path, name):
    "Headers, pixels, labels and the description, at 40 places of each file."
    load("digits", tmp_path)
    folder, = (tmp_path / "prepared").iterdir()
    whole = (folder / name).read_bytes()
    for i, at in enumerate(np.linspace(0, len(whole) - 1, 40).astype(int)):
        (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << i % 8]) + whole[at + 1:])
        fails("damaged .* delete this folder", "digits", tmp_path)
    (folder / name).write_bytes(whole)
    load("digits", tmp_path)

# --- splits and subsets

def test_nested_subsets(tmp_path):
    whole = load("digits", tmp_path)
    for n in (1, 10, 500, 1300):
        data = load("digits", tmp_path, n_train=n, n_valid=min(n, 200))
        assert torch.equal(data.x_train, whole.x_train[:n]) and torch.equal(data.y_train, whole.y_train[:n])
        assert torch.equal(data.x_valid, whole.x_valid[:n]) and torch.equal(data.x_test, whole.x_test)

def test_labels_follow_their_images(tmp_path, small):
    data = load("small", tmp_path)
    with np.load(small) as z:
        source = {s: (z[f"x_{s}"].transpose(0, 3, 1, 2), z[f"y_{s}"]) for s in ("train", "test")}
    for s in sources.SPLITS:
        x, y = source["test" if s == "test" else "train"]
        for a, label in zip(getattr(data, f"x_{s}"), getattr(data, f"y_{s}")):
            assert np.array_equal(a, x[y == int(label)][0])
    assert sorted(data.y_test.tolist()) == list(range(10))
    assert sorted(data.y_train.tolist() + data.y_valid.tolist()) == list(range(40)) and len(data.y_valid) == 4

def test_own_validation_split_is_kept(tmp_path):
    save(tmp_path / "own.npz",
         **{f"x_{s}": pixels(n, 4, 4, 1) for s, n in (("train", 30), ("valid", 20), ("test", 5))})
    data = load("own", tmp_path)
    with np.load(tmp_path / "own.npz") as z:
        own = z["x_valid"].transpose(0, 3, 1, 2)
    assert len(data.x_train) == 30 and images(data.x_valid) == images(own) and data.y_train is None

def test_numbers_of_numpy_count(tmp_path):
    assert len(load("digits", tmp_path, n_train=np.int32(7), n_valid=np.uint8(3)).x_train) == 7

# --- arrays, by path and by name, through their rows

def test_default_row(tmp_path):
    save(tmp_path / "rgb.npz", x_train=pixels(30, 7, 9, 3), x_test=pixels(3, 7, 9, 3))
    save(tmp_path / "grey.npz", x_train=pixels(30, 7, 9, 1), x_test=pixels(3, 7, 9, 1))
    save(tmp_path / "binary.npz", x_train=pixels(30, 7, 9, 1) // 128 * 255,
         x_test=pixels(3, 7, 9, 1) // 128 * 255)
    rows = [load(n, tmp_path) for n in ("rgb", "grey", "binary", "rgb")]
    assert [d.x_shape for d in rows] == [(3, 7, 9), (1, 7, 9), (1, 7, 9), (3, 7, 9)]
    assert [(d.choice.likelihood, d.choice.binarisation) for d in rows] == \
        [("gaussian", "none"), ("bernoulli", "stochastic"), ("bernoulli", "static"), ("gaussian", "none")]

def test_path_and_name_agree(tmp_path, small, monkeypatch):
    by_name = load("small", tmp_path)
    assert (load(small, tmp_path).checksum == load(str(small), tmp_path / "elsewhere").checksum
            == by_name.checksum)
    monkeypatch.chdir(tmp_path)
    assert load("small.npz", tmp_path).checksum == by_name.checksum
    monkeypatch.setenv("GPVAE_DATA", str(tmp_path))
    assert load("small").checksum == by_name.checksum

def test_an_own_file_under_a_known_name_is_not_the_known_set(tmp_path):
    "It remembers its path, and the set of the table is found by its name as before."
    own = tmp_path / "own" / "digits.npz"
    own.parent.mkdir()
    save(own, x_train=pixels(30, 8, 8, 1), x_test=pixels(3, 8, 8, 1))
    mine, known = load(own, tmp_path), load("digits", tmp_path)
    assert mine.name == known.name == "digits" and mine.checksum != known.checksum
    assert (mine.source == str(own) and known.source is None
            and load(mine.source, tmp_path).checksum == mine.checksum)
    assert len(mine.x_test) == 3 and len(known.x_test) == 297

@pytest.mark.parametrize("name, shape",
                         [("omniglot", (105, 105, 1)), ("mnist", (14, 14, 1)), ("celeba", (109, 89, 3)),
                          ("cifar10", (16, 20, 1))])
def test_an_own_file_by_its_path_is_taken_as_it_is(tmp_path, name, shape):
    "Not inverted, not resampled, not cropped, whatever set of the table has its name."
    own = save(tmp_path / f"{name}.npz", x_train=pixels(12, *shape), x_test=pixels(5, *shape))
    data = load(own, tmp_path / "root")
    with np.load(own) as z:
        x = z["x_test"].transpose(0, 3, 1, 2)
    assert data.x_shape == x.shape[1:] and images(data.x_test) == images(x)
    assert data.choice.likelihood == ("gaussian" if shape[-1] == 3 else "bernoulli")

def test_root_defaults_to_the_users_cache(monkeypatch):
    monkeypatch.delenv("GPVAE_DATA", raising=False)
    assert sources.data_root().parts[-2:] == ("gpvae", "data")

def test_npz_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.setitem(CHOICES, "digits", replace(CHOICES["digits"], source=None))
    save(tmp_path / "digits.npz", x_train=pixels(30, 8, 8, 1), x_test=pixels(3, 8, 8, 1))
    data = load("digits", tmp_path)
    assert len(data.x_train) == 27 and data.choice.binarisation == "fixed"

def test_omniglot_row(tmp_path):
    "Dark ink on light paper, 105×105, becomes ink 255 on 0, 28×28, without aliasing."
    paper = np.full((20, 105, 105, 1), 255, np.uint8)
    paper[:, :, 50:55] = 0
    save(tmp_path / "omniglot.npz", x_train=paper, x_test=paper[:2])
    data = load("omniglot", tmp_path)
    assert data.x_shape == (1, 28, 28) and len(data.x_valid) == 2
    row = data.x_test[0, 0, 14].double() / 255
    assert row.argmax() in (13, 14) and row[:11].max() == 0 and row[17:].max() == 0
    assert abs(row.sum().item() - 5 * 28 / 105) < 0.02  # the ink is kept: 5 of 105 pixels

def test_celeba_row(tmp_path):
    "The centre square of 148/178 of the width, also at half size, becomes 64×64."
    face = np.zeros((12, 109, 89, 3), np.uint8)
    face[:, 17:91, 7:81] = (10, 20, 30)
    save(tmp_path / "celeba.npz", x_train=face, x_test=face[:2])
    data = load("celeba", tmp_path)
    assert data.x_shape == (3, 64, 64) and data.choice.likelihood == "gaussian"
    assert torch.equal(data.x_test[0],
                       torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, 64, 64))

def test_rows_at_their_own_size_keep_every_pixel(tmp_path):
    for name, shape in dict(svhn=(32, 32, 3), cifar10=(32, 32, 3), static_mnist=(28, 28, 1),
                            fashion=(28, 28, 1)).items():
        x = pixels(900, *shape) if name == "svhn" else pixels(20, *shape)
        save(tmp_path / f"{name}.npz", x_train=x, x_test=x[:5])
        data = load(name, tmp_path)
        assert (images(data.x_train, data.x_valid) == images(x.transpose(0, 3, 1, 2))
                and len(data.x_valid) == len(x) // 10)

def test_picture_files(tmp_path, monkeypatch):
    "A source that hands over files gives the same set as the same pixels in an array."
    x = pixels(12, 109, 89, 3)
    for i, a in enumerate(x):
        Image.fromarray(a).save(tmp_path / f"{i:02}.png")
    files = sources.Pictures(sorted(tmp_path.glob("*.png")), "RGB")
    assert files.shape == x.shape and np.array_equal(files[3], x[3]) and len(files[10:]) == 2
    monkeypatch.setitem(CHOICES, "celeba",
                        replace(CHOICES["celeba"],
                                source=lambda root: dict(x_train=files[:10], x_test=files[10:])))
    from_files = load("celeba", tmp_path / "a").checksum
    save(tmp_path / "celeba.npz", x_train=x[:10], x_test=x[10:])
    assert load("celeba", tmp_path).checksum == from_files

# --- binarisation

def test_to_float():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_float(x, "none"), x / 255)
    assert to_float(x, "static").sum() == 128 and to_float(x, "static")[0, 0, 8, 0] == 1
    for seed in range(20):
        y = to_float(x, "stochastic", torch.Generator().manual_seed(seed))
        assert y[0, 0, 0, 0] == 0 and y[0, 0, 15, 15] == 1 and set(y.unique().tolist()) == {0., 1.}
    with pytest.raises(InputError, match="generator"):
        to_float(x, "stochastic")
    with pytest.raises(InputError, match="did you mean 'stochastic'"):
        to_float(x, "stocastic")

GREY = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)

@pytest.mark.parametrize("x, binarisation, match",
                         [(GREY / 255, "none", "pixels are float32: pass uint8, .* binarisation='floats'"),
                          (GREY.bool(), "static", "pixels are bool"),
                          (GREY, "floats", "pixels are uint8: binarisation 'floats' takes floats"),
                          (GREY.float(), "floats", "divide grey levels by 255"),
                          (GREY / 255 - 0.1, "floats", "not all between 0 and 1"),
                          (torch.full((1, 1, 4, 4), torch.inf), "floats", "not all between 0 and 1"),
                          (GREY // 255, "none", "multiply the images by 255"),
                          (GREY // 16, "none", "run to 15, not to 255: scale the images"),
                          (torch.cat([GREY / 255, GREY.float()]), "floats", "divide grey levels by 255"),
                          (torch.cat([GREY / 255, GREY / 255 - torch.nan]), "floats", "look for NaN")])
def test_pixels_that_would_be_silently_wrong(x, binarisation, match):
    with pytest.raises(InputError, match=match) as e:
        check_pixels(x, binarisation)
    assert "\n" not in str(e.value)
    if x.dtype != torch.uint8:
        with pytest.raises(InputError, match=match):
            to_float(x, binarisation, torch.Generator())

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_floats_pass_unchanged_under_their_name(dtype):
    x = (GREY / 255).to(dtype)
    assert to_float(x, "floats") is x
    for x in (GREY, GREY[..., :1], GREY * 0):
        check_pixels(x, "none") # a dark batch is fine

@pytest.mark.parametrize("draw",
                         [lambda x: to_float(x, "stochastic", torch.Generator().manual_seed(0)),
                          lambda x: to_float(binarise_fixed(x, 0), "static")])
def test_draws_have_the_grey_level_as_probability(draw):
    n = 20000
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 256).expand(n, -1, -1, -1)
    p = x[0].double() / 255
    z = (draw(x).double().mean(0) - p) / (p * (1 - p) / n).sqrt().clamp_min(1e-9)
    assert z.abs().max() < 5 and abs(z.pow(2).sum().item() / 254 - 1) < 0.45

def test_fixed_draw(tmp_path):
    x = load("digits", tmp_path).x_train
    drawn = binarise_fixed(x, split_seed("train"))
    assert drawn.dtype == torch.uint8 and set(drawn.unique().tolist()) == {0, 255}
    assert torch.equal(
        binarise_fixed(x[:77], split_seed("train")), drawn[:77]
    )  # nested: 1300 images are more than one chunk
    assert torch.equal(binarise_fixed(x[:1077], split_seed("train")), drawn[:1077])
    assert len({split_seed(s) for s in sources.SPLITS}) == 3
    assert not torch.equal(binarise_fixed(x, split_seed("valid")), drawn)
    assert pixel_checksum([drawn])[:12] == "493201596c89"  # part of every result obtained under `fixed`

def test_splits(tmp_path):
    data = load("digits", tmp_path, n_train=64)
    fixed, new, grey = (prepare_splits(data, b) for b in ("fixed", "stochastic", "none"))
    assert [s.train_binarisation for s in (fixed, new, grey)] == ["static", "stochastic", "none"]
    assert [s.eval_binarisation for s in (fixed, new, grey)] == ["static", "static", "none"]
    assert torch.equal(fixed.test, new.test) and torch.equal(fixed.valid, new.valid) and is_binary(new.test)
    assert torch.equal(new.train, data.x_train) and torch.equal(grey.test, data.x_test)

def test_gather_is_seeded_and_drawn_anew(tmp_path):
    splits, index = prepare_splits(load("digits", tmp_path), "stochastic"), torch.tensor([5, 0, 5])
    def batches(seed):
        generator = torch.Generator().manual_seed(seed)
        return [gather(splits.train, index, splits.train_binarisation, generator) for _ in range(2)]
    (a, b), (c, d) = batches(0), batches(0)
    assert torch.equal(a, c) and torch.equal(b, d) and not torch.equal(a, b) and not torch.equal(a[0], a[2])
    grey = splits.train[index]
    assert not a[grey == 0].any() and a[grey == 255].all()

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_splits_on_cuda(tmp_path):
    splits = prepare_splits(load("digits", tmp_path), "stochastic", "cuda")
    x = gather(splits.train, torch.arange(9, device="cuda"), "stochastic",
               torch.Generator("cuda").manual_seed(0))
    assert x.is_cuda
    assert torch.equal(splits.test.cpu(), prepare_splits(load("digits", tmp_path), "fixed").test)

def test_check_binarisation(tmp_path, small):
    data = load("digits", tmp_path)
    with pytest.raises(InputError, match="digits has grey pixels in x_train"):
        prepare_splits(data, "static")
    with pytest.raises(InputError, match="did you mean 'fixed'"):
        check_binarisation(data, "fixd")
    for b in ("fixed", "stochastic", "none"):
        check_binarisation(data, b)
    x = pixels(20, 28, 28, 1) // 128 * 255
    save(tmp_path / "static_mnist.npz", x_train=x, x_test=x)
    check_binarisation(load("static_mnist", tmp_path), "static")

# --- wrong input

def test_unknown_name(tmp_path, small):
    fails("'mnits' is unknown: did you mean 'mnist'", "mnits", tmp_path)
    fails("did you mean 'small'", "smal", tmp_path)
    fails("there is no such file", tmp_path / "none.npz", tmp_path)

GOOD = dict(x_train=pixels(20, 4, 4, 1), x_test=pixels(5, 4, 4, 1))

@pytest.mark.parametrize("change, match", [
    (dict(x_train=np.zeros((20, 4, 4, 1), np.float32)), "x_train of .* is float32: pixels must be uint8"),
    (dict(x_test=np.zeros((5, 4, 4, 1))), "x_test of .* is float64"),
    (dict(x_train=None), "has no x_train"),
    (dict(x_test=None), "has no x_test"),
    (dict(x_test=pixels(5, 5, 4, 1)), r"x_test of .* has images \[5, 4, 1\], x_train \[4, 4, 1\]"),
    (dict(x_valid=pixels(5, 4, 4, 3)), r"x_valid of .* has images \[4, 4, 3\]"),
    (dict(x_train=pixels(20, 4, 4, 1)[..., 0]),
     r"x_train of .* has shape \[20, 4, 4\]: it must be \[N, H, W, C\]"),
    (dict(x_train=np.array([pixels(1, 4, 4, 1)[0], pixels(1, 5, 5, 1)[0]], dtype=object)),
     "arrays of objects: all images must have one size"),
    (dict(x_train=pixels(0, 4, 4, 1)), "x_train of .* is empty"),
    (dict(x_test=pixels(0, 4, 4, 1)), "x_test of .* is empty"),
    (dict(x_valid=pixels(0, 4, 4, 1)), "x_valid of .* is empty"),
    (dict(x_train=pixels(1, 4, 4, 1)), "at least two"),
    (dict(x_train=pixels(20, 1, 4, 4), x_test=pixels(5, 1, 4, 4)), "4 channels"),
    (dict(x_train=pixels(20, 0, 4, 1), x_test=pixels(5, 0, 4, 1)), "without pixels"),
    (dict(x_train=pixels(20, 4, 4, 1) % 2, x_test=pixels(5, 4, 4, 1) % 2),
     "run to 1, not to 255: multiply the images by 255"),
    (dict(x_test=pixels(5, 4, 4, 1) % 2), "x_test of .* run to 1, not to 255: multiply the images by 255"),
    (dict(x_valid=pixels(5, 4, 4, 1) % 2), "x_valid of .* run to 1, not to 255"),
    (dict(x_train=pixels(20, 4, 4, 1) % 17, x_test=pixels(5, 4, 4, 1) % 17),
     "run to 16, not to 255: scale the images"),
    (dict(x_val=pixels(5, 4, 4, 1)), "'x_val' is unknown: did you mean 'x_valid'"),
    (dict(X_valid=pixels(5, 4, 4, 1)), "'X_valid' is unknown"),
    (dict(test=pixels(5, 4, 4, 1)), "'test' is unknown"),
    (dict(labels_train=np.arange(20)), "'labels_train' is unknown"),
    (dict(y_train=np.arange(19)), r"y_train of .* is int64 \[19\]: labels must be 20 integers"),
    (dict(y_test=np.zeros(5)), "y_test of .* is float64"),
    (dict(y_valid=np.arange(5)), "y_valid of .*"),
])
def test_bad_arrays(tmp_path, change, match):
    file = save(tmp_path / "bad.npz", **{k: v for k, v in (GOOD | change).items() if v is not None})
    assert str(file) in fails(match, "bad", tmp_path)
    fails(match, file, tmp_path)
    assert not list((tmp_path / "prepared").iterdir())

@pytest.mark.parametrize("name, shape, match",
                         [("mnist", (28, 28, 3), "have 3 channels, mnist has 1"),
                          ("cifar10", (32, 32, 1), "have 1 channels, cifar10 has 3"),
                          ("omniglot", (105, 100, 1), "are 105×100: .* of omniglot"),
                          ("celeba", (40, 89, 3), "are 40×89: .* of celeba")])
def test_arrays_that_do_not_fit_their_row(tmp_path, name, shape, match):
    save(tmp_path / f"{name}.npz", x_train=pixels(5, *shape), x_test=pixels(5, *shape))
    fails(match, name, tmp_path)

@pytest.mark.parametrize("content", [b"no archive at all", b"\x80\x04pickled", b"PK\x03\x04"])
def test_what_is_no_npz_is_said_to_be_none(tmp_path, content):
    (tmp_path / "none.npz").write_bytes(content)
    assert "objects" not in fails("is damaged or no .npz", "none", tmp_path)

def test_every_broken_byte_of_an_npz_is_noticed_or_harmless(tmp_path):
    file = tmp_path / "flip.npz"
    np.savez(file, **GOOD)
    whole, right = file.read_bytes(), load("flip", tmp_path).checksum
    for at in range(0, len(whole), 23):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1:])
        try:
            assert load("flip", tmp_path).checksum == right
        except InputError as e:
            assert "objects" not in str(e) and "\n" not in str(e)

def test_other_arrays_of_an_npz_are_left_alone(tmp_path):
    save(tmp_path / "more.npz", **GOOD, ids=np.arange(3), names=np.array(["a", "b"]))
    assert len(load("more", tmp_path).x_test) == 5

def test_unwritable_root(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    fails("cannot be written .* GPVAE_DATA", "digits", tmp_path / "file" / "root")

def test_failed_download(tmp_path, monkeypatch):
    def source(root): raise OSError("no route to host")
    monkeypatch.setitem(CHOICES, "cifar10", replace(CHOICES["cifar10"], source=source))
    message = fails("no route to host", "cifar10", tmp_path)
    assert str(tmp_path / "cifar10.npz") in message and "x_train" in message

# --- the real sets, where they are

CHECKSUMS = dict(static_mnist="fb3fa998fbec", mnist="e0b50404a9e6", omniglot="b8a4b54716a1")
REAL = dict(static_mnist=(50000, 10000, 10000), mnist=(50000, 10000, 10000), omniglot=(17280, 2000, 13180),
            cifar10=(40000, 10000, 10000), svhn=None, celeba=None)

@pytest.mark.parametrize("name", REAL)
def test_real_set(name):
    root = sources.data_root()
    if not (root / f"{name}.npz").is_file():
        pytest.skip(f"{root / name}.npz is missing: set GPVAE_DATA to a folder that has it")
    data = load(name)
    n = tuple(len(x) for x in (data.x_train, data.x_valid, data.x_test))
    assert data.x_shape == (CHOICES[name].channels, CHOICES[name].size, CHOICES[name].size)
    assert n == (REAL[name] or n)
    check_binarisation(data, CHOICES[name].binarisation)
    assert name not in CHECKSUMS or data.checksum[:12] == CHECKSUMS[name]
