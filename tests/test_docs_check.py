"The checks of the site and of the tree find what they are there to find."
import base64
import contextlib
import copy
import itertools
import json
import struct

import pytest

import docs_check
import make_readme
import make_site
import sync_check

IDS = map(str, itertools.count())

def markdown(text): return dict(cell_type="markdown", id=next(IDS), metadata={}, source=text.splitlines(True))
def code(text, *outputs, tags=()):
    return dict(cell_type="code", id=next(IDS), metadata={"tags": list(tags)}, execution_count=None,
                source=text.splitlines(True), outputs=list(outputs))

def stream(name, text="noise"): return dict(output_type="stream", name=name, text=[text])
def notebook(*cells): return dict(cells=list(cells), metadata={}, nbformat=4, nbformat_minor=5)

TITLE = markdown("# A page\n\n> What it says.")
ERROR = dict(output_type="error", ename="ValueError", evalue="", traceback=[])
PARAMETERS = code('dataset = "digits"', tags=["parameters"])
SKIP = dict(cell_type="raw", id="r", metadata={}, source="---\nskip_exec: true\n---")
GOOD = notebook(TITLE,
                markdown("$$a$$ {#eq-a}\n\nby @eq-a, e.g. `@eq-b`, user@eq-c.org"),
                code("import math"),
                code("math.pi", stream("stdout")))

def page(tmp_path, nb, name="10_page.ipynb"):
    path = tmp_path / "nbs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(nb))
    return path

def test_good_page(tmp_path):
    path = page(tmp_path, GOOD)
    assert docs_check.check_page(path) == docs_check.check_processed(path) == []

PICTURE = dict(output_type="display_data", metadata={}, data={"image/png": "AA==", "text/plain": "<Figure>"})
def shown(kind, text): return dict(output_type="display_data", metadata={}, data={kind: text})

@pytest.mark.parametrize("cell, words", [
    (code("import math\nmath.pi"), "mixes imports"),
    (code("def f():\n    import math"), "mixes imports"),
    (code("1", ERROR), "holds an error"),
    (code("1", stream("stderr")), "wrote to stderr"),
    (markdown("::: {.note}\nx\n:::"), "a `:::` box"),
    (code('#| export\ndef f():\n    "The bound (@eq-elbo)."'), "raw reference @eq-elbo"),
    (code("#| export\nx = 1 # see @fig-one"), "raw reference @fig-one"),
    (code("plot()", PICTURE), "shows 1 figures with 0"),
    (code("#| fig-cap: A caption of the figure\nplot()", PICTURE), "shows 1 figures with 0"),
    (code("#| fig-alt: two words\nplot()", PICTURE), "shows 1 figures with 0"),
    (code("#| fig-alt: three words here\nplot()", PICTURE, PICTURE), "shows 2 figures with 1"),
    (markdown("![](a.png)"), "without alt text"),
    (markdown('<img src="a.png">'), "without alt text"),
    (code("1", shown("text/html", '<img alt="" src="data:x">')), "without alt text"),
    (markdown('<script src="https://cdn.x/a.js"></script>'), "remote host"),
    (markdown("![a badge](https://img.x/b.svg)"), "remote host"),
    (code("1", shown("text/html", "<link rel=stylesheet href=//x.y/a.css>")), "remote host"),
    (code("1", shown("application/javascript", "alert()")), "scripts of a remote host"),
])
def test_faulty_cell(tmp_path, cell, words):
    faults = docs_check.check_page(page(tmp_path, notebook(TITLE, cell)))
    assert len(faults) == 1 and words in faults[0]

@pytest.mark.parametrize("cell", [
    code("\n\n".join(["x = 1"] * 99)),
    code("#| export\ndef f():\n    'It.'\n    import math"),
    markdown("```\n:::\n```"),
    code('#| export\ndef f():\n    "The bound (equation: elbo), user@eq-a.org."'),
    code("#| fig-alt: three words here\nplot()", PICTURE),
    code("#| fig-alt:\n#|   - one two three\n#|   - four five six\nplot()", PICTURE, PICTURE),
    code("#| fig-cap: A caption\n#| fig-alt: three words here\n#| echo: false\nplot()", PICTURE),
    markdown("![what it shows](a.png)"),
    markdown('![](a.png){fig-alt="what it shows"}'),
    code("1", shown("text/html", '<td>nano</td><img alt="a" src="data:x">')),
    markdown("[a paper](https://arxiv.org/abs/1) and `<script src=https://x>`"),
])
def test_allowed_cell(tmp_path, cell):
    assert docs_check.check_page(page(tmp_path, notebook(TITLE, cell))) == []

@pytest.mark.parametrize("change, words", [
    ({}, None),
    ({"html-math-method": "mathjax"}, "MathJax"),
    ({"css": "far.css"}, "far.css loads from a remote host"),
    ({"theme": {"light": "default", "dark": ["default", "gone.scss"]}}, "gone.scss does not exist"),
    ({"include-in-header": {"text": '<script src="https://x.y/a.js">'}}, "_quarto.yml loads"),
    ({"theme": {"light": "default", "dark": ["default", "near.scss"]}}, None),
])
def test_config(tmp_path, change, words):
    (tmp_path / "far.css").write_text("@import url('https://fonts.x/a');")
    (tmp_path / "near.scss").write_text("$a: 1; /* from https://x.y */")
    site = config()
    site["format"]["html"] |= change
    faults = docs_check.check_config(site, tmp_path)
    assert (faults == []) if words is None else (len(faults) == 1 and words in faults[0])

def show_doc(*names):
    return code("show_doc(x)",
                shown("text/markdown", "\n\n".join(f"### {n}\n\n*What it says.*" for n in names)))

@pytest.mark.parametrize("cells, words", [
    ((show_doc("Gap", "gap"),), "2 headings share the anchor #gap"),
    ((markdown("## Gap"), show_doc("gap")), "share the anchor #gap"),
    ((show_doc("gap", "Gaps"),), None),
    ((markdown("## Twice"), markdown("## Twice")), None),
    ((code("show_doc(f)", shown("text/markdown", "### f\n\n```python\ndef f():\n```")),),
     "f without a docstring"),
])
def test_processed_page(tmp_path, cells, words):
    faults = docs_check.check_processed(page(tmp_path, notebook(TITLE, *cells)))
    assert (faults == []) if words is None else (len(faults) == 1 and words in faults[0])

@pytest.mark.parametrize(
    "first, words", [("text", "not `# Title`"), ("# A page\n\n> What it says.\n\nMore.", "drops this line")]
)
def test_title(tmp_path, first, words):
    assert words in docs_check.check_page(page(tmp_path, notebook(markdown(first))))[0]

@pytest.mark.parametrize("text, words",
                         [("see @eq-gone", "@eq-gone has no definition"),
                          ("see [@fig-gone]", "@fig-gone"),
                          ("see @tbl-gone.", "@tbl-gone has"),
                          ("-@sec-gone", "@sec-gone"),
                          ("$a$ {#eq-a}\n\n$b$ {#eq-a}", "defined 2 times")])
def test_reference(tmp_path, text, words):
    faults = docs_check.check_processed(page(tmp_path, notebook(markdown(text))))
    assert len(faults) == 1 and words in faults[0]

def test_label_of_a_figure(tmp_path):
    assert (docs_check.check_processed(page(tmp_path,
                                            notebook(markdown("see @fig-a"),
                                                     code("#| label: fig-a\nplot()")))) == [])

@pytest.mark.parametrize("cells, words",
                         [((SKIP, TITLE, code("x = 1")), "0 cells are tagged"),
                          ((TITLE, PARAMETERS), "skip_exec"),
                          ((SKIP, TITLE, PARAMETERS, code("#| export\nx = 1")), "exporting"),
                          ((SKIP, TITLE, PARAMETERS, code("#| default_exp study.run")), "exporting")])
def test_template(tmp_path, cells, words):
    good, bad = (page(tmp_path, notebook(SKIP, TITLE, PARAMETERS), "gap.ipynb"),
                 page(tmp_path, notebook(*cells), "reproduce.ipynb"))
    assert docs_check.check_page(good, is_template=True) == []
    assert words in " ".join(docs_check.check_page(bad, is_template=True))

def config(*contents, render=(), resources=()):
    html = {"html-math-method": "mathml", "theme": "default"}
    return dict(project=dict(render=list(render), resources=list(resources)),
                format=dict(html=html),
                website=dict(sidebar=dict(contents=list(contents))))

@pytest.mark.parametrize("contents, render, words", [
    (["10_page.ipynb", dict(section="More", contents=[dict(text="There", href="20_there.ipynb")])], (), None),
    (["10_page.ipynb"], ["*.ipynb", "!/20_there.ipynb"], None),
    (["10_page.ipynb"], (), "20_there.ipynb: not in the sidebar"),
    (["10_page.ipynb", "20_there.ipynb", "30_gone.ipynb"], (), "names 30_gone.ipynb, which is no page"),
    (["10_page.ipynb", "20_there.ipynb"], ["*.ipynb", "!/20_there.ipynb"],
     "names 20_there.ipynb, which is no page"),
    (["10_page.ipynb", "10_page.ipynb", "20_there.ipynb"], (), "names 10_page.ipynb 2 times"),
    (["10_page.ipynb", "20_there.ipynb"], ["*.ipynb", "!gap.ipynb"], "leaves !gap.ipynb out in every folder"),
])
def test_sidebar(contents, render, words):
    faults = docs_check.check_sidebar(config(*contents, render=render), ["10_page.ipynb", "20_there.ipynb"])
    assert (faults == []) if words is None else (len(faults) == 1 and words in faults[0])

def test_names(tmp_path):
    for i, (name, title) in enumerate((("10_data", "A"), ("results/data", "B"), ("85_gap", "C"), ("gap", "D"),
                                       ("90_own", "D"))):
        page(tmp_path, notebook(markdown(f"# {title}")), f"{name}.ipynb")
    faults = docs_check.check_names(
        tmp_path / "nbs", ["10_data.ipynb", "results/data.ipynb", "85_gap.ipynb", "gap.ipynb", "90_own.ipynb"]
    )
    assert faults == ["85_gap.ipynb, gap.ipynb: all become gap.html",
                      "gap.ipynb, 90_own.ipynb: all are called # D"]

PLACES = {"10_data.ipynb": {"load"}, "data.html": {"load"}, "10_page.ipynb": {"here"}, "page.html": {"here"}}

@pytest.mark.parametrize("target, ok",
                         [("/data.html#load", True), ("/data.html#gone", False), ("../10_data.ipynb", False),
                          ("data.html", True), ("/gone.html", False), ("https://a.b/c.html", True),
                          ("results/a.csv", True), ("results/gone.csv", False), ("../README.md", False),
                          ("./10_data.ipynb", True), ("/notebooks/10_data.ipynb", True), ("#here", True),
                          ("#lost", False), ("30_left_out.ipynb", False)])
@pytest.mark.parametrize("form", ["a [`link`]({})", 'a <a href="{}">link</a>'])
def test_links(tmp_path, target, ok, form):
    path, files = (page(tmp_path, notebook(markdown(form.format(target)))),
                   ["results/a.csv", "10_data.ipynb", "30_left_out.ipynb"])
    assert bool(docs_check.check_links(tmp_path / "nbs", path, PLACES, files)) != ok

def test_links_of_an_output(tmp_path):
    path = page(tmp_path,
                notebook(code("1", shown("text/markdown", "[x](gone.ipynb)"),
                              shown("text/html", '<a href="lost.ipynb">x</a>'))))
    assert len(docs_check.check_links(tmp_path / "nbs", path, PLACES)) == 2

def test_anchors():
    words = notebook(TITLE, markdown(
        '## Effective sample size (ESS)\n\n<a id="kingma"></a> $$a$$ {#eq-a}\n\n### 2. `log_w` of [it](x)'
    ))
    places = docs_check.anchors(words)
    assert {"effective-sample-size-ess", "kingma", "eq-a", "log_w-of-it"} <= places

@pytest.mark.parametrize(
    "text", ["in /" + "root/x", "(/" + "home/me)", "{folder}/notes", "from /tmp/ipy" + "kernel_1/2.py"]
)
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
    (tmp_path / "gpvae/gone.py").write_text(
        "# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/20_gone.ipynb."
    )
    (tmp_path / "gpvae/study").mkdir()
    (tmp_path / "gpvae/study/plain.py").write_text("x = 1")
    (tmp_path / "gpvae/study/was.py").write_text(
        "# AUTOGENERATED! DO NOT EDIT! File to edit: ../../nbs/80_was.ipynb."
    )
    assert [f.split()[0] for f in sync_check.orphans(tmp_path)] == ["gpvae/gone.py", "gpvae/old.py",
                                                                    "gpvae/own.py", "gpvae/study/was.py"]

def test_state_sees_a_change(tmp_path):
    path = page(tmp_path, GOOD)
    before = sync_check.state(tmp_path)
    path.write_text(path.read_text() + " ")
    assert before.keys() == sync_check.state(tmp_path).keys() and before != sync_check.state(tmp_path)

def test_readme(tmp_path):
    """A reader of plain text gets links from the top of the tree, one text form of each output, and the
    picture as an image."""
    table = dict(output_type="display_data", metadata={}, data={"text/html": "<b>", "text/markdown": "| a |"})
    drawn = '#| echo: false\n#| fig-alt: "What it shows"\n#| fig-cap: "A caption."\ndraw()'
    nb = notebook(TITLE,
                  markdown("[data](10_data.ipynb), [there](https://a.b), [use](#use)"),
                  code("#| hide\nsecret()"),
                  code(drawn, PICTURE),
                  code("#| eval: false\nrun()", table))
    text = make_readme.readme(page(tmp_path, copy.deepcopy(nb), "index.ipynb"))
    assert text.startswith("# A page\n\n> What it says.\n") and text.endswith("| a |\n")
    assert "[data](nbs/10_data.ipynb), [there](https://a.b), [use](#use)" in text
    assert f"![What it shows](nbs/{make_readme.PICTURE.name})\n\n*A caption.*" in text
    assert "```python\nrun()\n```" in text
    assert not any(word in text for word in ("secret", "draw()", "Figure", "<b>", "#|"))

TUPLE = """#| exports
class Pair(NamedTuple):
    "Two numbers."
    a: int      # the first, in nats
    b: int = 2
"""
def documentation(name):
    return f"### {name}\n\n```python\ndef {name}(\n    *args, **kwargs\n):\n```\n\n*Two numbers.*"

FOLD = '#| code-fold: show\n#| code-summary: "Exported source"\n'
FOLDED = '#| code-fold: true\n#| code-summary: "Source: {}"\n'

def finished(*cells, original=(), name="page.ipynb"):
    "The sources and the Markdown outputs of a page that is finished."
    done = make_site.finish(notebook(*cells), notebook(*original), name)["cells"]
    outputs = [o["data"] for c in done for o in c.get("outputs", [])]
    return done, [make_site.source(c) for c in done], outputs

def test_finished_page():
    """Results show no code, every page can be downloaded, and every source is a list of lines: Quarto joins
    the lines of a string."""
    front = dict(cell_type="raw", id="f", metadata={}, source="---\ntitle: A page\n---\n")
    done, text, _ = finished(front, code("import math\n\nx = 1 # one"), name="results/page.ipynb")
    assert (text[0] == "---\nexecute:\n  echo: false\ntitle: A page\n---\n"
            and "(/notebooks/results/page.ipynb)" in text[-1])
    assert done[1]["source"] == ["import math\n", "\n", "x = 1 # one"]
    assert all(isinstance(c["source"], list) for c in done)
    assert "echo" not in finished(dict(front, source="---\ntitle: A page\n---\n"))[1][0]

def test_folded_source():
    """Neighbours are folded together, under the names that they define; what has an output or is shown stays
    as it is."""
    _, text, _ = finished(code(FOLD + "A = 1"), code(""), code(FOLD + "@f\nclass B: pass"), markdown("Text."),
                          code(FOLD + "def c(): pass"), code("#| code-fold: show\nx = 1"),
                          code(FOLD + "a = b = c = d = e = 1"))
    assert (text[0] == FOLDED.format("A, B") + "A = 1\n\n@f\nclass B: pass"
            and text[2] == FOLDED.format("c") + "def c(): pass")
    assert text[3] == "#| code-fold: show\nx = 1"
    assert text[4].startswith(FOLDED.format("a, b, c, d and 1 more"))

def test_documentation_of_classes():
    "A NamedTuple shows its fields, and a class is no `def`."
    plain = "### C\n\n```python\ndef C(\n    x:int, # one\n)->None:\n```\n\n*One.*"
    made = finished(*(code("show_doc(x)", shown("text/markdown", t)) for t
                      in (documentation("Pair"), documentation("Other"), plain, plain.replace("C", "f"))),
                    original=[code(TUPLE), code("#| export\n@dataclass\nclass C:\n    x: int # one")])[2]
    assert ("class Pair(\n    a: int, # the first, in nats\n    b: int = 2,\n)\n" in made[0]["text/markdown"]
            and "class Other\n" in made[1]["text/markdown"])
    assert ("```python\nclass C(\n    x:int, # one\n)\n```" in made[2]["text/markdown"]
            and "def f(" in made[3]["text/markdown"])

def test_tables_and_figures_of_a_finished_page():
    "Tables load no script and have one header row; a figure of 200 dots an inch takes half as many pixels."
    rows = "<tr><th></th><th>a</th></tr><tr><th>name</th><th></th></tr>"
    table = f"<style scoped>a</style><table><thead>{rows}</thead><tbody></tbody></table>"
    figure, coarse = (base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + struct.pack(">I", 900) + b"pHYs"
                                       + struct.pack(">I", n)).decode() for n in (7874, 3937))
    made = finished(code("t", shown("text/html", [table])), code("f", shown("image/png", figure)),
                    code("g", shown("image/png", coarse)))
    assert made[2][0] == {"text/markdown":
                          "```{=html}\n<table><thead><tr><th>name</th><th>a</th></tr></thead>"
                          "<tbody></tbody></table>\n```"}
    assert [c["outputs"][0]["metadata"] for c in made[0][1:3]] == [{"image/png": {"width": 450}}, {}]

def test_numbers_that_stay_on_one_line():
    row = "| -1.0 ± 0.1 | +2 [-1.0, +0.5] | [0, 1] and b ± c |"
    made = finished(code("t", shown("text/markdown", row)))[2]
    nbsp = "\u00a0"
    expected = f"| -1.0{nbsp}±{nbsp}0.1 | +2 [-1.0,{nbsp}+0.5] | [0,{nbsp}1] and b ± c |"
    assert made[0]["text/markdown"] == expected

NESTED = [("[[`evaluate`](/iwae.html#evaluate)](32_iwae.ipynb)", "[`evaluate`](32_iwae.ipynb)"),
          ("[the [`a`](u) and [`b`](v) pages](w)", "[the `a` and `b` pages](w)"),
          ("[`_X`](/x.html#_x)", "`_X`"),
          ("[`A._x`](/x.html#_x)", "`A._x`")]
GOOD_LINKS = ["[`a`](u) and [b](c)", "[0, 1] of [`a`](u) [x](y)", "`[[a](b)](c)`"]

@pytest.mark.parametrize("text, mended", NESTED + [(t, t) for t in GOOD_LINKS])
def test_links_inside_links(text, mended):
    assert finished(markdown(text))[1][0] == mended
    assert finished(code("1", shown("text/markdown", text)))[2][0]["text/markdown"] == mended

@pytest.mark.parametrize("html, words",
                         [('<span id="cb1-1"><span class="im">import</span> math</span>\n'
                           '<span id="cb1-2"><a href="#cb1-2"></a>x <span>&lt;</span> 1</span>', None),
                          ('<span id="cb1-1"><span class="im">import</span> mathx <span>&lt;</span> 1</span>',
                           "1 lines of code"),
                          ("</code></pre><p>::: {.note}</p><pre><code>", "a raw `:::`"),
                          ("print(':::')", None)])
def test_faults_of_the_made_pages(tmp_path, html, words):
    page(tmp_path, notebook(code("import math\nx < 1")))
    (tmp_path / "page.html").write_text(f'<pre><code class="sourceCode python">{html}</code></pre>')
    faults = make_site.html_faults(tmp_path / "nbs", tmp_path)
    assert (faults == []) if words is None else (len(faults) == 1 and words in faults[0])

def test_host_of_the_site():
    text = 'website:\n  title: "a"\n  site-url: ""\n'
    assert make_site.with_host(text, None) == text
    assert 'site-url: "https://a.b/c"' in make_site.with_host(text, "https://a.b/c/")

def test_site_without_quarto(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="quarto.org") as stop:
        make_site.main()
    assert "\n" not in str(stop.value)

@pytest.mark.parametrize("said, fails", [("Output created", False), ("WARNING (a.lua:1)", True)])
def test_site_with_quarto(monkeypatch, tmp_path, said, fails):
    """Quarto runs where nbdev wrote, what it makes lands beside the notebooks, and its warning fails the
    build."""
    proc, tool = tmp_path / "_proc", tmp_path / "bin/quarto"
    for folder in (proc, tool.parent, tmp_path / "_docs"):
        folder.mkdir()
    (tmp_path / "_docs/old.html").write_text("old")
    tool.write_text(f"#!/bin/sh\nmkdir _docs && echo $@ > _docs/index.html; echo '{said}'")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    monkeypatch.setattr(make_site, "ROOT", tmp_path)
    monkeypatch.setattr(make_site, "process", lambda: proc)
    with pytest.raises(SystemExit, match="WARNING") if fails else contextlib.nullcontext():
        make_site.main()
    assert [p.name for p in (tmp_path / "_docs").iterdir()] == ["index.html"]
    assert "render" in (tmp_path / "_docs/index.html").read_text()

def test_workflows():
    "GitHub runs the targets that a person runs, and nothing names a registry or a machine."
    root = make_site.ROOT
    for name, target in (("test", "make test"), ("deploy", "make site")):
        text = (root / f".github/workflows/{name}.yml").read_text()
        jobs = docs_check.yaml.safe_load(text)["jobs"].values()
        assert [s["run"] for job in jobs for s in job["steps"] if "run" in s] == [target]
        assert not docs_check.re.search(r"https?://|pypi|--index|/(?:home|root)\b", text)
        assert docs_check.re.search(rf"^{target.split()[1]}:", (root / "Makefile").read_text(),
                                    docs_check.re.M), target

def test_index_of_names(tmp_path):
    "The kept table is compared with what its page makes now."
    cells = [code("from IPython.display import Markdown"),
             code("#| echo: false\nMarkdown('| a | b |')", shown("text/markdown", "| a | b |"))]
    page(tmp_path, notebook(TITLE, *cells), "api.ipynb")
    assert docs_check.check_api(tmp_path) == []
    page(tmp_path, notebook(TITLE, cells[0], code("Markdown('| a | c |')", *cells[1]["outputs"])),
         "api.ipynb")
    assert ["execute the page" in f for f in docs_check.check_api(tmp_path)] == [True]
