"The checks of the site and of the tree find what they are there to find."
import copy
import itertools
import json

import pytest

import docs_check
import make_readme
import notebooks_check
import sync_check

IDS = map(str, itertools.count())

def markdown(text): return dict(cell_type="markdown", id=next(IDS), metadata={}, source=text)
def code(text, *outputs, tags=()): return dict(cell_type="code", id=next(IDS), metadata={"tags": list(tags)}, execution_count=None, source=text, outputs=list(outputs))
def stream(name, text="noise"): return dict(output_type="stream", name=name, text=[text])
def notebook(*cells): return dict(cells=list(cells), metadata={}, nbformat=4, nbformat_minor=5)

TITLE = markdown("# A page\n\n> What it says.")
ERROR = dict(output_type="error", ename="ValueError", evalue="", traceback=[])
PARAMETERS = code('dataset = "digits"', tags=["parameters"])
SKIP = dict(cell_type="raw", id="r", metadata={}, source="---\nskip_exec: true\n---")
GOOD = notebook(TITLE, markdown("$$a$$ {#eq-a}\n\nby @eq-a, e.g. `@eq-b`, user@eq-c.org\n\n::: {.note}\nx\n:::"), code("import math"), code("math.pi", stream("stdout")))

def page(tmp_path, nb, name="10_page.ipynb"):
    path = tmp_path / "nbs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(nb))
    return path

def test_good_page(tmp_path):
    path = page(tmp_path, GOOD)
    assert docs_check.check_page(path) == docs_check.check_processed(path) == []

@pytest.mark.parametrize("cell, words", [
    (code("\n".join(["x = 1"] * 41)), "41 lines"),
    (code("import math\nmath.pi"), "mixes imports"),
    (code("def f():\n    import math"), "mixes imports"),
    (code("1", ERROR), "holds an error"),
    (code("1", stream("stderr")), "wrote to stderr"),
    (markdown("::: {.note}\nx"), "stay open"),
    (markdown("x\n:::"), "not open"),
])
def test_faulty_cell(tmp_path, cell, words):
    faults = docs_check.check_page(page(tmp_path, notebook(TITLE, cell)))
    assert len(faults) == 1 and words in faults[0]

@pytest.mark.parametrize("cell", [code("\n\n".join(["x = 1"] * 40)), code("#| export\ndef f():\n    import math"), markdown("```\n:::\n```")])
def test_allowed_cell(tmp_path, cell): assert docs_check.check_page(page(tmp_path, notebook(TITLE, cell))) == []

@pytest.mark.parametrize("first, words", [("text", "not `# Title`"), ("# A page\n\n> What it says.\n\nMore.", "drops this line")])
def test_title(tmp_path, first, words): assert words in docs_check.check_page(page(tmp_path, notebook(markdown(first))))[0]

@pytest.mark.parametrize("text, words", [
    ("see @eq-gone", "@eq-gone has no definition"), ("see [@fig-gone]", "@fig-gone"), ("see @tbl-gone.", "@tbl-gone has"), ("-@sec-gone", "@sec-gone"),
    ("$a$ {#eq-a}\n\n$b$ {#eq-a}", "defined 2 times")])
def test_reference(tmp_path, text, words):
    faults = docs_check.check_processed(page(tmp_path, notebook(markdown(text))))
    assert len(faults) == 1 and words in faults[0]

def test_label_of_a_figure(tmp_path):
    assert docs_check.check_processed(page(tmp_path, notebook(markdown("see @fig-a"), code("#| label: fig-a\nplot()")))) == []

@pytest.mark.parametrize("cells, words", [
    ((SKIP, TITLE, code("x = 1")), "0 cells are tagged"), ((TITLE, PARAMETERS), "skip_exec"),
    ((SKIP, TITLE, PARAMETERS, code("#| export\nx = 1")), "exporting"), ((SKIP, TITLE, PARAMETERS, code("#| default_exp run")), "exporting")])
def test_template(tmp_path, cells, words):
    good, bad = page(tmp_path, notebook(SKIP, TITLE, PARAMETERS), "gap.ipynb"), page(tmp_path, notebook(*cells), "reproduce.ipynb")
    assert docs_check.check_page(good, is_template=True) == []
    assert words in " ".join(docs_check.check_page(bad, is_template=True))

def config(*contents, render=()): return dict(project=dict(render=list(render)), website=dict(sidebar=dict(contents=list(contents))))

def test_sidebar(tmp_path):
    page(tmp_path, GOOD)
    nested = config("10_page.ipynb", dict(section="More", contents=[dict(text="There", href="20_there.ipynb")]))
    assert "20_there.ipynb, which does not exist" in docs_check.check_sidebar(tmp_path / "nbs", nested, ["10_page.ipynb"])[0]
    lost = docs_check.check_sidebar(tmp_path / "nbs", config("10_page.ipynb"), ["10_page.ipynb", "30_lost.ipynb"])
    assert len(lost) == 1 and "30_lost.ipynb: not in the sidebar" in lost[0]
    assert docs_check.check_sidebar(tmp_path / "nbs", config("10_page.ipynb", render=["!30_lost.ipynb"]), ["10_page.ipynb", "30_lost.ipynb"]) == []

def test_names():
    assert docs_check.check_names(["10_data.ipynb", "results/data.ipynb"]) == []
    assert "all become reproduce.html" in docs_check.check_names(["85_reproduce.ipynb", "reproduce.ipynb"])[0]

@pytest.mark.parametrize("target, ok", [("/data.html#load", True), ("../10_data.ipynb", False), ("data.html", True), ("/gone.html", False), ("https://a.b/c.html", True)])
def test_links(tmp_path, target, ok):
    path = page(tmp_path, notebook(markdown(f"a [`link`]({target})")))
    assert bool(docs_check.check_links(tmp_path / "nbs", path, ["10_data.ipynb", "10_page.ipynb"])) != ok

@pytest.mark.parametrize("text", ["in /" + "root/x", "(/" + "home/me)", "{folder}/notes", "from /tmp/ipy" + "kernel_1/2.py"])
def test_paths(tmp_path, text):
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "a.md").write_text(text.format(folder=folder))
    (folder / "b.md").write_text("https://a.b/" + "home/x and ${GPVAE_DATA}/" + "root/x")
    assert ["a path of this machine" in f for f in docs_check.check_files(folder, ["a.md", "b.md"])] == [True]

def test_size(tmp_path):
    (tmp_path / "a.npz").write_bytes(bytes(1_000_001))
    assert "more than 1 MB" in docs_check.check_files(tmp_path, ["a.npz"])[0]

def test_whole_site(tmp_path):
    "Faults of the source and of nbdev's output both come out."
    page(tmp_path, notebook(TITLE, code("1", stream("stderr")), markdown("@eq-gone")))
    (tmp_path / "_quarto.yml").write_text(json.dumps(config("10_page.ipynb")))
    faults = docs_check.check(tmp_path, proc=lambda: tmp_path / "nbs")
    assert any("stderr" in f for f in faults) and any("@eq-gone" in f for f in faults)
    assert "cannot process" in docs_check.check(tmp_path, proc=lambda: 1 / 0)[-1]

def test_orphans(tmp_path):
    page(tmp_path, notebook(TITLE, code("#| default_exp data")), "10_data.ipynb")
    module = tmp_path / "gpvae/data.py"
    module.parent.mkdir()
    module.write_text("# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/10_data.ipynb.")
    assert sync_check.orphans(tmp_path) == []
    (tmp_path / "gpvae/old.py").write_text(module.read_text())
    (tmp_path / "gpvae/own.py").write_text("x = 1")
    (tmp_path / "gpvae/gone.py").write_text("# File to edit: ../nbs/20_gone.ipynb.")
    assert [f.split()[0] for f in sync_check.orphans(tmp_path)] == ["gpvae/gone.py", "gpvae/old.py", "gpvae/own.py"]

def test_state_sees_a_change(tmp_path):
    path = page(tmp_path, GOOD)
    before = sync_check.state(tmp_path)
    path.write_text(path.read_text() + " ")
    assert before.keys() == sync_check.state(tmp_path).keys() and before != sync_check.state(tmp_path)

def test_slow_notebooks():
    seconds = notebooks_check.times("- Completed x.ipynb\nSuccess.\n10_data.ipynb: 21 secs\n20_networks.ipynb: 20 secs\n")
    assert notebooks_check.faults(seconds, 100) == ["10_data.ipynb took 21 s, more than 20"]
    assert len(notebooks_check.faults({}, 241)) == 1

def test_readme(tmp_path):
    picture = dict(output_type="display_data", metadata={}, data={"image/png": "AA==", "text/plain": "<Figure>"})
    table = dict(output_type="display_data", metadata={}, data={"text/html": "<b>", "text/markdown": "| a |"})
    nb = notebook(TITLE, markdown("[data](10_data.ipynb), [there](https://a.b), [use](#use)"), code("#| hide\nsecret()"), code("#| eval: false\nrun()", picture, table))
    text = make_readme.readme(page(tmp_path, copy.deepcopy(nb), "index.ipynb"))
    assert text.startswith("# A page\n\n> What it says.\n") and text.endswith("| a |\n")
    assert "[data](nbs/10_data.ipynb), [there](https://a.b), [use](#use)" in text
    assert "```python\nrun()\n```" in text and not any(word in text for word in ("secret", "Figure", "<b>", "png", "#|"))
