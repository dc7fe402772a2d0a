"""The GP encoder as a layer in other people's code: changed heads, checkpointing, bad batches, transforms,
options."""
import copy
import inspect
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, parametrizations, prune
from torch.utils.checkpoint import checkpoint

from gpvae.checks import InputError
from gpvae.encoders.gp import GPEncoder, _DiagonalCovariance
from gpvae.posteriors import DiagonalGaussian
from toys import perturb, seeded

H, Z, B = 16, 3, 40

def images(n=B, seed=1):
    return torch.randn(n, 5, generator=seeded(seed))

def encoder(batches=5, **options):
    torch.manual_seed(0)
    found = GPEncoder(nn.Sequential(nn.Linear(5, H), nn.Tanh()), H, Z, **options)
    perturb(found, 0.3)
    for i in range(batches):
        found.train()(images(seed=i))
    return found.eval()

class LoRA(nn.Module):
    "A frozen head with a correction of rank one, as adapters add it; it shows the weight of the head."
    def __init__(self, head):
        super().__init__()
        self.head = head
        self.down, self.up = nn.Linear(H, 1, bias=False), nn.Linear(1, Z, bias=False)

    weight = property(lambda self: self.head.weight)
    bias = property(lambda self: self.head.bias)

    def forward(self, phi):
        return self.head(phi) + self.up(self.down(phi))

class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight

def replaced_forward(head):
    plain = head.forward
    head.forward = lambda phi: 3 * plain(phi)
    return head

def hooked(head):
    head.register_forward_hook(lambda module, args, out: out + 1)
    return head

def prehooked(head):
    head.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return head

def pruned(head):
    prune.random_unstructured(head, "weight", 0.5)
    with torch.no_grad():
        head.weight_orig.mul_(2) # as a step of an optimiser does: `weight` is stale until a call
    return head

def parametrised(head):
    parametrize.register_parametrization(head, "weight", Doubled())
    return head

HEADS = {
    "LoRA": LoRA,
    "hook": hooked,
    "hook before": prehooked,
    "pruned": pruned,
    "parametrisation": parametrised,
    "weight norm": parametrizations.weight_norm,
    "own forward": replaced_forward,
    "no bias": lambda head: nn.Linear(H, Z, bias=False),
    "replaced": lambda head: nn.Sequential(head, nn.Tanh()),
    "quantised": lambda head: torch.ao.nn.quantized.dynamic.Linear.from_float(with_qconfig(head)),
}

def with_qconfig(head):
    head.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return head

@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_called_as_it_is(name):
    model, x = encoder(), images()
    model.b = HEADS[name](model.b)
    with torch.no_grad():
        r, phi = model.functions(x), model.trunk(x)
        b = model.b(phi)
        expected = b + model.features(phi) @ model.W.mean.T
    torch.testing.assert_close(r.f_mean, expected)

def test_a_changed_kernel_is_obeyed():
    "Features, or a covariance, that were replaced after construction."
    model, x = encoder(), images()
    model.features = encoder(features="layernorm").features
    torch.testing.assert_close(model.functions(x), model._unfolded(model.trunk(x), model.trunk(x)))
    class Wider(_DiagonalCovariance):
        def var(self, psi):
            return 4 * super().var(psi)
    before = encoder().functions(x).f_var
    model = encoder()
    model.W.cov.__class__ = Wider
    torch.testing.assert_close(model.functions(x).f_var, 4 * before)

def gradients(model, run):
    "Those of one training step, and the moments after it."
    torch.manual_seed(3)
    q = run(model.train(), images(seed=9))
    (q.mu.square().sum() + q.log_sigma.sum()).backward()
    return [p.grad for p in model.parameters() if p.grad is not None] + list(model.buffers())

CHECKPOINTS = {"not reentrant": dict(use_reentrant=False), "reentrant": dict(use_reentrant=True)}

@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("options", [{}, dict(covariance="full"), dict(own_features=True)])
def test_activation_checkpointing_changes_nothing(name, options):
    def run(model, x):
        both = lambda x: tuple(vars(model(x)).values())
        return DiagonalGaussian(*checkpoint(both, x.requires_grad_(), **CHECKPOINTS[name]))
    for a, b in zip(gradients(encoder(**options), lambda model, x: model(x.requires_grad_())),
                    gradients(encoder(**options), run), strict=True):
        torch.testing.assert_close(a, b)

BAD = {
    "NaN": lambda x: torch.where(torch.arange(B)[:, None] == 3, math.nan, x),
    "infinite": lambda x: torch.where(torch.arange(B)[:, None] == 3, math.inf, x),
    "overflow of the square": lambda x: 1e25 * x,
    "all NaN": lambda x: x * math.nan,
}

@pytest.mark.parametrize("name", BAD)
def test_a_batch_that_is_not_finite_moves_no_moments(name):
    torch.manual_seed(0)
    model = GPEncoder(nn.Identity(), 5, Z)
    model.train()(images())
    before = copy.deepcopy(list(model.buffers()))
    model(BAD[name](images()))
    for a, b in zip(before, model.buffers(), strict=True):
        assert torch.equal(a, b)
    model(images(seed=2))
    assert not torch.equal(model.features.mean, before[0])
    assert all(b.isfinite().all() for b in model.buffers())

KERNELS = [{}, dict(covariance="full"), dict(features="layernorm"), dict(features="raw"),
           dict(own_features=True), dict(correlated=True)]

@pytest.mark.parametrize("options", KERNELS)
def test_in_evaluation_the_doubt_has_its_gradient_in_x(options):
    model = encoder(**options).double()
    x = images(3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model.uncertainty(x).nats, x)
    grad, = torch.autograd.grad(model.functions(x).f_var.sum(), x)
    assert grad.abs().sum() > 0

class Traced(nn.Module):
    "What a trace can return."
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        q = self.model(x)
        return q.mu, q.log_sigma

def scale_of(model, row):
    return model(row[None]).log_sigma.sum()

TRANSFORMS = { # each: encoder, images -> means or their gradient
    "vmap": lambda e, x: torch.func.vmap(lambda row: e(row[None]).mu[0])(x),
    "grad": lambda e, x: torch.func.grad(lambda x: e(x).log_sigma.sum())(x),
    "gradients of each": lambda e, x: torch.func.vmap(torch.func.grad(lambda row: scale_of(e, row)))(x),
    "forward derivative": lambda e, x: torch.func.jvp(lambda x: e(x).log_sigma, (x,), (x * 0 + 1,))[1],
    "functional call": lambda e, x: torch.func.functional_call(e, dict(e.named_parameters()), (x,)).mu,
    "trace": lambda e, x: torch.jit.trace(Traced(e), x[:7])(x)[0],
}

@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("options", [{}, dict(covariance="full"), dict(features="layernorm")])
def test_transforms_of_an_encoder_in_evaluation_mode(name, options):
    model, x = encoder(**options), images()
    with torch.enable_grad():
        direct = images().requires_grad_()
        q = model(direct)
        gradient, = torch.autograd.grad(q.log_sigma.sum(), direct)
    found = TRANSFORMS[name](model, x)
    expected = {"grad": gradient, "gradients of each": gradient, "forward derivative": gradient.sum(1)}
    if name == "forward derivative":
        found = found.sum(1)
    torch.testing.assert_close(found.detach(), expected.get(name, q.mu).detach(), rtol=1e-4, atol=1e-5)

@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("transform", [
    lambda e, x: torch.func.grad(lambda x: e(x).mu.sum())(x),
    lambda e, x: torch.func.vmap(lambda r: e(r[None]).mu[0], randomness="different")(x)])
def test_a_transform_in_training_is_one_line(transform):
    with pytest.raises(InputError, match="evaluation mode") as error:
        transform(encoder().train(), images())
    assert "\n" not in str(error.value)
    transform(encoder(features="layernorm").train(), images()) # the other remedy

OPTIONS = {
    "infinite prior": (dict(prior_scale=math.inf), "prior_scale is inf: it must be a finite number"),
    "NaN": (dict(temperature=math.nan), "temperature is nan: it must be a finite number"),
    "infinite temperature": (dict(temperature=math.inf), "temperature is inf"),
    "no prior": (dict(prior_scale=0.), "prior_scale is 0.0: it must be positive"),
    "a string": (dict(prior_scale="1"), "prior_scale is '1': it must be a finite number"),
    "half a component": (dict(n_mixture=1.5), "n_mixture is 1.5: it must be a whole number"),
    "no component": (dict(n_mixture=0), "n_mixture is 0: it must be at least 1"),
    "half a latent": (dict(z_dim=1.5), "z_dim is 1.5: it must be a whole number"),
    "true features": (dict(h_dim=True), "h_dim is True: it must be a whole number"),
    "mode": (dict(mode="marginall"), "did you mean 'marginal'"),
    "correlated mixture": (dict(mode="mixture", correlated=True), "test-time mode 'mixture' is unknown"),
}

@pytest.mark.parametrize("name", OPTIONS)
def test_wrong_options_are_one_line(name):
    wrong, match = OPTIONS[name]
    build = inspect.unwrap(GPEncoder.__init__) # types are not checked for a user
    with pytest.raises(InputError, match=match):
        build(GPEncoder.__new__(GPEncoder), nn.Identity(), **dict(h_dim=H, z_dim=Z) | wrong)

LATER = [({}, "marginall"), ({}, "Mean"), (dict(correlated=True), "mixture")]

@pytest.mark.parametrize("options, mode", LATER)
def test_a_mode_that_is_set_later_is_looked_at(options, mode):
    model = encoder(**options)
    with pytest.raises(InputError, match="test-time mode"):
        model.mode = mode
    assert model.mode == "marginal"
    model.mode = "mean"
    with torch.no_grad():
        torch.testing.assert_close(model(images()).mean, model.functions(images()).f_mean)
    assert copy.deepcopy(model).mode == "mean"
