"Pages: a function of committed data alone, twice the same bytes, readable without a network."

import html.parser
import json
import re
import shutil

import nbformat
import pandas as pd
import pytest
from IPython.utils.capture import capture_output

from gpvae.study import report
from gpvae.study.report import TEMPLATES, drop_dead_links, note, page_name, render, section, table
from gpvae.study.run import run
from gpvae.study.store import Store
from gpvae.study.studies import Study, grid

TINY = dict(epochs=4, hidden=(8,), n_test=60, k=5)
FORBIDDEN = (r"told apart|for itself|from elsewhere|taken apart|in turns|has of its own|learned by heart|"
             r"\bheld\b|:::")


@pytest.fixture(scope="module")
def study():
    return grid("digits", ["vae", "gpvae"], [2], settings=TINY, name="tiny",
                title="Likelihoods of a tiny study")


@pytest.fixture(scope="module")
def store(study, tmp_path_factory):
    "A store of two runs whose folders are gone."
    runs, store = tmp_path_factory.mktemp("runs"), Store(tmp_path_factory.mktemp("store"))
    results = [run(spec, runs, "cpu", bar=False) for spec in study.specs]
    store.keep(results, pictured=[result.row["run"] for result in results])
    shutil.rmtree(runs)
    return store


class Elements(html.parser.HTMLParser):
    "Tags of a page with their attributes."

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_a_page_is_a_function_of_committed_data(study, store, tmp_path, monkeypatch):
    "Two copies of a store at two places, no run folders: the same notebook and the same page, byte for byte."
    monkeypatch.setenv("GPVAE_RUNS", str(tmp_path / "no runs"))
    pages = [render(study, Store(shutil.copytree(store.folder, tmp_path / place)))
             for place in ("one", "another")]
    for suffix in (".html", ".ipynb"):
        first, second = (page.with_suffix(suffix).read_bytes() for page in pages)
        assert first == second and str(tmp_path).encode() not in first
    page = nbformat.read(pages[0].with_suffix(".ipynb"), as_version=4)
    nbformat.validate(page)
    outputs = [o for cell in page.cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type in ("error", "stream")]
    assert page.cells[1].source.startswith("# Likelihoods of a tiny study\n")
    for cell in page.cells:
        if cell.cell_type == "code":
            assert (cell.metadata["jupyter"] == {"source_hidden": True}
                    and "hide-input" in cell.metadata["tags"])
            assert cell.source.startswith("#| echo: false") and cell.execution_count is None
    text = pages[0].read_text(encoding="utf-8")
    elements = Elements(text).tags
    assert not [a for tag, a in elements if tag in ("script", "link", "iframe")]
    images = [a for tag, a in elements if tag == "img"]
    assert len(images) >= 7 and all(a["alt"] and a["src"].startswith("data:") for a in images)
    for words in ("gpvae − vae", "Learning curves", "gpvae: samples", "Every run", "one seed",
                  "Test-time modes"):
        assert words in text
    for words in ("Mixture weights", "Refined encoders", "missing", "import "):
        assert words not in text
    assert "<th></th>" not in text and not re.search(FORBIDDEN, text)


def test_prose_of_the_template_is_plain():
    cells = nbformat.read(TEMPLATES / "reproduce.ipynb", as_version=4).cells
    assert not [c.source for c in cells if re.search(FORBIDDEN, c.source)]
    assert sum("parameters" in c.metadata.get("tags", []) for c in cells) == 1


def execute(monkeypatch, **parameters):
    "Run the cells of the template here: what they print and display."
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *contents: shown.extend(contents))
    names = {}
    with capture_output() as captured:
        for cell in nbformat.read(TEMPLATES / "reproduce.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                exec(cell.source, names)
                if "parameters" in cell.metadata.get("tags", []):
                    names |= parameters
    return captured.stdout, "\n".join(str(content.data) for content in shown)


def test_an_empty_folder_has_a_page_that_names_the_call(monkeypatch, tmp_path):
    printed, page = execute(monkeypatch, dataset="digits", methods="vae gpvae",
                            results=str(tmp_path / "none"))
    assert "2 of 2 runs are missing" in page and "papermill nbs/reproduce.ipynb" in page and "##" not in page
    assert not (tmp_path / "none").exists() and not printed


def test_training_from_the_template_goes_on_where_rows_are(monkeypatch, tmp_path, runs):
    words = dict(methods="vae", z_dims=2, settings="epochs=2 hidden=(8,) n_test=40 k=5", train=True,
                 results=str(tmp_path / "out"))
    first, page = execute(monkeypatch, **words)
    assert first.startswith("0 finished, 1 missing") and "## Likelihoods" in page and "missing" not in page
    again, same = execute(monkeypatch, **words)
    assert again.startswith("1 finished, none missing") and same == page


def test_a_study_file_is_the_one_parameter(monkeypatch, study, store, tmp_path):
    copy = shutil.copytree(store.folder, tmp_path / "copy")
    study.write(copy / "tiny.json")
    _, page = execute(monkeypatch, study=str(copy / "tiny.json"))
    assert "gpvae − vae" in page and "missing" not in page


def test_a_section_without_content_leaves_nothing(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *contents: shown.extend(contents))
    section("## Nothing", table(pd.DataFrame()), note(""))
    assert not shown
    section("## Some", note("text"), None)
    assert [content.data for content in shown] == ["## Some", "> text"]


def test_a_table_has_one_header_line_and_its_text_is_escaped():
    frame = pd.DataFrame({"a": ["**1 < 2**"]}, index=pd.Index(["x & y"], name="method"))
    text = table(frame, folded="Every run").data
    assert text.count("<tr>") == 2 and "<th>method</th><th>a</th>" in text
    assert ("<strong>1 &lt; 2</strong>" in text and "x &amp; y" in text
            and "<summary>Every run</summary>" in text)


def test_links_to_pages_that_are_not_there_become_text(tmp_path):
    (tmp_path / "there.ipynb").write_text("{}")
    text = "[a](there.ipynb#x), [b](../gone.ipynb), [c](https://example.org)"
    assert drop_dead_links(text, tmp_path) == "[a](there.ipynb#x), b, [c](https://example.org)"


def test_names_of_pages_stay_in_their_folder(study):
    assert page_name(study) == "tiny" and page_name(study, "gap") == "gap_tiny"
    with pytest.raises(report.InputError, match="name of a file"):
        page_name(Study("../evil", "Evil", study.specs))


def test_the_study_is_written_beside_its_page(study, tmp_path):
    study.write(tmp_path / "tiny.json")
    assert len(json.loads((tmp_path / "tiny.json").read_text())["specs"]) == 2
    assert Study.read(tmp_path / "tiny.json") == study
