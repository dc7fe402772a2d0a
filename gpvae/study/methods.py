"The methods of a comparison: name -> encoder and its options, with the words that tables and pages use."
import inspect
from collections.abc import Callable
from typing import NamedTuple

from gpvae.encoders.amortized import AmortizedEncoder
from gpvae.encoders.full_covariance import FullEncoder
from gpvae.encoders.gp import GPEncoder
from gpvae.encoders.householder import HouseholderEncoder
from gpvae.encoders.iaf import IAFEncoder
from gpvae.encoders.laplace import LaplaceEncoder
from gpvae.encoders.mixture import MixtureEncoder
from gpvae.encoders.recursive_mixture import RecursiveMixtureEncoder
from gpvae.encoders.semi_amortized import gp_semi_amortized, semi_amortized
from gpvae.encoders.svi import svi


class Method(NamedTuple):
    "An encoder and its options."
    encoder: Callable           # trunk, h_dim, z_dim, **options -> Encoder
    options: dict[str, object]  # what makes it this method
    title: str                  # full name
    idea: str                   # one sentence
    family: str                 # name without the size: "sa" of "sa-4"
    page: str                   # notebook that derives it
    step_cost: float = 1.       # training step, in units of the VAE's (2 × 500 units, one core)


METHODS = {
    "vae": Method(AmortizedEncoder, {}, "VAE",
                  "A network gives the mean and the variances of a diagonal Gaussian.",
                  "vae", "30_vae.ipynb"),
    "gpvae": Method(GPEncoder, {}, "GP encoder",
                    "Mean and log standard deviation are Gaussian processes around those of a network.",
                    "gpvae", "40_gp_encoder.ipynb", 1.13),
    "gpvae-mean": Method(GPEncoder, {"covariance": "none"}, "GP encoder without randomness",
                         "The network of the GP encoder with functions that are not random: the control.",
                         "gpvae", "40_gp_encoder.ipynb"),
    "vae-dropout": Method(AmortizedEncoder, {"dropout": 0.05}, "VAE with dropout",
                          "Training drops some of the features that the Gaussian is read from.",
                          "vae", "30_vae.ipynb"),
    "full": Method(FullEncoder, {}, "Full covariance",
                   "The network gives the Cholesky factor of a full covariance too.",
                   "full", "57_full_covariance.ipynb", 1.1),
    "vlae": Method(LaplaceEncoder, {"damping": 0.25}, "Laplace (VLAE)",
                   "Solves with the linearised decoder give the mean, its curvature the full covariance.",
                   "vlae", "56_laplace.ipynb", 46.),
    "svi": Method(svi, {}, "Stochastic VI per image",
                  "At test time the Gaussian of each image is optimised until its bound stops rising.",
                  "svi", "55_svi.ipynb"),
}


def add_family(family: str, encoder: Callable, option: str,  # the option that the size sets
               costs: dict[int, float],                      # size -> cost of a training step
               title: str, idea: str, page: str) -> None:    # {k} in the title is the size
    "Register methods that differ in one number, as `family-k`."
    for k, cost in costs.items():
        name = title.format(k=k, s="s" if k > 1 else "")
        METHODS[f"{family}-{k}"] = Method(encoder, {option: k}, name, idea, family, page, cost)


add_family("sa", semi_amortized, "steps", {1: 2.1, 2: 3.1, 4: 5.3, 8: 9.1},
           "Semi-amortized, {k} gradient step{s}",
           "Gradient steps on the bound of each image improve the Gaussian of the network.",
           "50_semi_amortized.ipynb")
add_family("gpvae+sa", gp_semi_amortized, "steps", {1: 2.2, 2: 3.2, 4: 5.4, 8: 9.2},
           "GP encoder and {k} gradient step{s}", "Gradient steps start from the Gaussian of the GP encoder.",
           "50_semi_amortized.ipynb")
add_family("iaf", IAFEncoder, "flows", {1: 1.1, 2: 1.2, 4: 1.4, 8: 1.7},
           "Inverse autoregressive flow, {k} step{s}",
           "Autoregressive networks bend a Gaussian sample, step by step.", "51_iaf.ipynb")
add_family("hf", HouseholderEncoder, "reflections", {1: 1.1, 2: 1.1, 4: 1.2, 8: 1.2},
           "Householder flow, {k} reflection{s}", "Reflections turn the axes of a diagonal Gaussian.",
           "52_householder.ipynb")
add_family("me", MixtureEncoder, "n_components", {2: 2., 3: 2.3, 4: 2.8, 5: 3.3}, "Mixture of {k} Gaussians",
           "The network gives a mixture of diagonal Gaussians.", "53_mixture.ipynb")
add_family("rme", RecursiveMixtureEncoder, "n_components", {2: 3., 3: 5., 4: 7., 5: 9.},
           "Recursive mixture of {k} Gaussians",
           "Gaussians are added one by one, each rewarded for being unlike the mixture so far.",
           "54_recursive_mixture.ipynb")


def encoder_options(method: str             # one of METHODS
                    ) -> dict[str, object]:  # name -> default
    "The options that a method's encoder takes besides trunk and sizes, with those of the method filled in."
    parameters = inspect.signature(METHODS[method].encoder).parameters
    defaults = {name: p.default for name, p in parameters.items() if name not in ("trunk", "h_dim", "z_dim")}
    return defaults | METHODS[method].options
