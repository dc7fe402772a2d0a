"Untrained models of the methods, for images of any shape."

from gpvae.study import config
from gpvae.study.config import RunConfig, RunSpec, merge_settings
from gpvae.study.settings import DataConfig


def build_model(spec: RunSpec, x_shape: tuple[int, int, int]):
    "The model of a specification for images of a shape, without an image set."
    budget, options = merge_settings(spec)
    return config.build_model(RunConfig(spec, "made up", spec.method, options, spec.z_dim, spec.seed,
                                        spec.likelihood or "bernoulli", "static", x_shape, "0" * 64,
                                        DataConfig(1, 1, 1), budget.model, budget.train, budget.evaluation))
