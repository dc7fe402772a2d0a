"The committed gaps are whole, and their page shows what the files say."
import pytest

from gpvae.study.store import Store, checkout
from gpvae.study.verdict import decomposition, read_report

STORE = Store(checkout() / "nbs" / "results")
PAGES = sorted({(row["dataset"], row["budget"]) for _, row in STORE.gaps().iterrows() if not row["settings"]}) # those of changed settings have no page of their own

def test_every_run_is_measured_once():
    rows = STORE.gaps()
    assert rows["spec"].is_unique and set(rows["spec"]) <= set(STORE.runs()["spec"])

@pytest.mark.parametrize("dataset, budget", PAGES)
def test_committed_gaps_are_whole(dataset, budget):
    report = read_report(dataset, budget, STORE.folder)
    for m in report.methods:
        g = report.gaps(m)
        assert len(g.elbo) >= 2 and (g.total > -1).all() and (g.ess >= 1 - 1e-3).all()
        assert abs(report.columns(m, "test")["iwae_1.0"].mean() - report.rows.loc[m, "iwae_1.0"]) < 0.01

def test_the_committed_page_shows_what_its_files_say():
    text, report = (STORE.folder / "gap.ipynb").read_text(), read_report("static_mnist", "cpu", STORE.folder)
    for cell in decomposition(report).astype(str).to_numpy().ravel(): assert cell in text
