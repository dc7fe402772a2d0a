"""Render the committed pages anew, from the committed rows alone: the only writer of pages under nbs/results.

Nothing is trained, and a page without rows is left out. `make_pages.py NAME ...` renders some."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from gpvae.study.claims import claims_study
from gpvae.study.report import render
from gpvae.study.store import Store
from gpvae.study.studies import preset_studies

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "results"

def main(names: list[str]) -> None:
    "Render pages of likelihoods, pages of gaps where gaps were measured, and the page of the claims."
    store, studies = Store(RESULTS), preset_studies() | {"claims": claims_study}
    for name in names or studies:
        study = studies[name]()
        results = study.results(store)
        templates = ({"claims": results.rows} if name == "claims"
                     else {"reproduce": results.rows, "gap": results.gaps})
        for template, rows in templates.items():
            if len(rows):
                page = render(study, store, template=template)
                page.unlink()  # the site has the notebook alone
                print(page.with_suffix(".ipynb").relative_to(RESULTS.parent.parent), flush=True)

if __name__ == "__main__":
    main(sys.argv[1:])
