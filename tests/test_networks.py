"""The layers of the networks: whichever library makes their products, they are PyTorch's own, with their
gradients."""
import copy

import pytest
import torch
from torch import nn

from gpvae import products
from gpvae.networks import _Network, mlp_decoder, mlp_trunk
from gpvae.products import _FEW, Linear, _pays

SIZES = 192, 160 # inputs and outputs

@pytest.fixture
def detour(monkeypatch):
    "Let oneDNN make every product."
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("no oneDNN in this PyTorch")
    called, original = [], products._product
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(products, "_FEW", 0)
    monkeypatch.setattr(products, "_product", lambda *args: called.append(1) or original(*args))
    return called

def pair(bias=True):
    torch.manual_seed(0)
    layer = Linear(*SIZES, bias=bias)
    usual = nn.Linear(*SIZES, bias=bias)
    usual.load_state_dict(layer.state_dict())
    return layer, usual

def derivatives(layer, x):
    """The value of a loss, its gradients, and those of its gradient's square, as semi-amortized training
    takes them."""
    weights = tuple(layer.parameters())
    y = layer(x)
    first = torch.autograd.grad(y.pow(3).mean(), (x, *weights), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, *weights))
    return y, *first, *second

@pytest.mark.parametrize("shape", [(64,), (3, 20)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_pytorchs_with_its_gradients(detour, shape, bias):
    layer, usual = pair(bias)
    x = torch.randn(*shape, SIZES[0], requires_grad=True)
    found, expected = derivatives(layer, x), derivatives(usual, x)
    assert detour and found[0].shape == (*shape, SIZES[1]) and len(found) == len(expected)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * b.abs().max().item() + 1e-9)

def test_a_gradient_in_the_input_alone_makes_none_of_the_weights(detour):
    "Three products with the weights' gradient, two without, for leaves and for what is computed."
    layer, x = pair()[0], torch.randn(7, SIZES[0], requires_grad=True)
    for inputs, count in (([x], 2), ([x, layer.weight], 3), ([layer.weight], 2)):
        detour.clear()
        torch.autograd.grad(layer(x).sum(), inputs)
        assert len(detour) == count
    detour.clear()
    layer(x).sum().backward()
    assert len(detour) == 3 and layer.weight.grad is not None and layer.bias.grad is not None

def test_without_gradients_and_in_inference_mode_it_is_the_same(detour):
    layer, usual = pair()
    x = torch.randn(7, SIZES[0])
    with torch.no_grad():
        torch.testing.assert_close(layer(x), usual(x), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), usual(x), rtol=1e-4, atol=1e-5)
    layer.requires_grad_(False) # a decoder that is held still passes the gradient on
    y = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(layer(y).sum(), y)[0],
                               torch.autograd.grad(usual(y).sum(), y)[0], rtol=1e-4, atol=1e-5)
    assert len(detour) >= 4

@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_kinds_of_numbers_take_the_usual_way(detour, kind):
    layer, usual = (module.to(kind) for module in pair())
    x = torch.randn(7, SIZES[0], dtype=kind)
    assert torch.equal(layer(x), usual(x)) and not detour

def test_small_products_take_the_usual_way(monkeypatch):
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    rows = torch.zeros(4, 8)
    assert not _pays(rows, _FEW // 32 - 1) and _pays(rows, _FEW // 32)

def test_mkl_is_asked_on_a_processor_of_its_maker(monkeypatch, tmp_path):
    for text, slow in (("vendor_id : GenuineIntel", False), ("vendor_id : AuthenticAMD", True)):
        monkeypatch.setattr("pathlib.Path.read_text", lambda self, text=text: text)
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        assert products._mkl_is_slow.__wrapped__() == (
            slow and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        )
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not products._mkl_is_slow.__wrapped__()

@pytest.mark.filterwarnings("ignore")
def test_compiled_and_transformed_calls_take_the_usual_way(detour, monkeypatch):
    "Jacobians forwards and backwards, per-image gradients and traces are those of PyTorch's layers."
    layer, usual = pair()
    x, v = torch.randn(3, SIZES[0]), torch.randn(3, SIZES[0])
    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.vmap):
        torch.testing.assert_close(transform(layer)(x), transform(usual)(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (v,))[1], torch.func.jvp(usual, (x,), (v,))[1],
                               rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.trace(layer, x, check_trace=False)(x), usual(x), rtol=1e-4,
                               atol=1e-5)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(layer(x), usual(x))
    assert not detour

def test_the_networks_are_copied_and_loaded_as_pytorchs_own():
    trunk, decoder = mlp_trunk((1, 6, 6), (8,)), mlp_decoder(2, (1, 6, 6), (8,))
    assert list(trunk.state_dict()) == ["1.weight", "1.bias"]
    assert list(decoder.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert isinstance(trunk, nn.Sequential) and isinstance(copy.deepcopy(decoder), _Network)
