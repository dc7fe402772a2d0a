"Every public class and function of the library is used in an example: in its docstring, or on its page."
import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).resolve().parent.parent / "nbs"

# Without an example so far.
PENDING = {
    "gpvae.data": {
        "ImageSet", "Splits", "first_images", "open_prepared", "prepare_set", "prepared_arrays",
        "prepared_key", "write_prepared"},
    "gpvae.sources": {
        "Pictures", "fetch_celeba", "fetch_cifar10", "fetch_digits", "fetch_mnist",
        "fetch_omniglot", "fetch_set", "fetch_static_mnist", "fetch_svhn"},
    "gpvae.pixels": {"unit_floats"},
    "gpvae.vae": {"ElboTerms", "Wrapper"},
    "gpvae.inference.best_gaussian": {"BestGaussian", "Parameters", "ascended", "best_gaussians"},
    "gpvae.encoders.semi_amortized": {"gp_semi_amortized"},
    "gpvae.training": {
        "Trainer", "load_checkpoint", "optimizer_tensors", "refit", "restore_optimizer", "run_epoch"},
    "gpvae.train_step": {"backward_with_dreams"},
    "gpvae.stepper": {"RecordedStep"},
    "gpvae.posteriors": {"check_values"},
    "gpvae.inference.starts": {"FullGaussianMixture", "Starts", "Neighbours", "ascend", "starts_from"},
}

# Pages whose examples are not looked at yet.
LATER = {"gpvae.judge", "gpvae.adapters", "gpvae.encoders.gp", "gpvae.evaluation.ais", "gpvae.evaluation.gap",
         "gpvae.evaluation.iwae", "gpvae.evaluation.likelihood"}


def pages():
    "The code cells of every page that exports a module, by the module's name."
    by_module = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        module = re.search(r"^#\| ?default_exp (\S+)", "\n".join(cells), flags=re.M)
        if module:
            by_module["gpvae." + module[1]] = cells
    return by_module


def used_names(cells):
    "Names that cells without an export use."
    shown = [cell for cell in cells if not re.search(r"^#\| ?(export|default_exp)", cell, flags=re.M)]
    nodes = [node for cell in shown for node in ast.walk(ast.parse(re.sub(r"^%.*", "", cell, flags=re.M)))]
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


PAGES = pages()


@pytest.mark.parametrize("name", sorted(set(PAGES) - LATER))
def test_every_public_name_has_an_example(name):
    module, used = importlib.import_module(name), used_names(PAGES[name])
    public = [public for public in module.__all__ if callable(getattr(module, public))]
    lacking = {public for public in public
               if public not in used and ">>>" not in (getattr(module, public).__doc__ or "")}
    assert lacking <= PENDING.get(name, set())


def test_a_name_in_an_export_alone_is_no_example():
    assert used_names(["#| export\nf(1)", "g(2)", "module.h"]) == {"g", "module", "h"}
