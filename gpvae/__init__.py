"""Amortized inference in variational autoencoders, and the measurements that judge it.

The names that users need are imported when they are first used: `import gpvae` itself costs nothing."""
__version__ = "0.1.0"

from importlib import import_module

_MODULES = {  # where each public name lives
    "gpvae.vae": ("VAE", "Encoder"),
    "gpvae.posteriors": ("Posterior", "DiagonalGaussian", "FullGaussian", "GaussianMixture"),
    "gpvae.likelihoods": ("Bernoulli", "Gaussian"),
    "gpvae.encoders.amortized": ("AmortizedEncoder",),
    "gpvae.encoders.gp": ("GPEncoder",),
    "gpvae.encoders.natural_step": ("with_natural_step",),
    "gpvae.networks": ("mlp_trunk", "mlp_decoder"),
    "gpvae.data": ("load", "prepare_splits"),
    "gpvae.training": ("TrainConfig", "train", "refit"),
    "gpvae.adapters": ("adapt",),
    "gpvae.judge": ("judge",),
    "gpvae.evaluation.iwae": ("evaluate",),
    "gpvae.evaluation.ais": ("ais",),
    "gpvae.evaluation.likelihood": ("log_likelihood",),
    "gpvae.evaluation.gap": ("measure_gaps",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    "Import a public name on its first use (PEP 562)."
    if name not in _HOMES:
        raise AttributeError(f"module 'gpvae' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
