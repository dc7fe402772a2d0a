"The style check can fail: every rule finds its fault in a small checkout, and lets pass what is allowed."
import json

import pytest

import style_check
from style_check import Module, check, crowded_bodies, exported, imports, joined_statements, loaded_study, long_lines, main, questions, upward_imports, upward_pages

def module(source, name="gpvae/m.py"): return Module(name, source)

def test_long_lines():
    m = module('"""' + "A page's description. " * 9 + '"""\n__all__ = ["' + "x" * 120 + '"]\n\n# %% ../nbs/10_' + "p" * 120 + '.ipynb #1\n' + f"x = {'1' * 106}\ny = {'é' * 107}\n")
    assert long_lines(m) == ["gpvae/m.py:6 has 111 characters, more than 110"]

def test_joined_statements():
    assert joined_statements(module("x = 1; y = 2\ns = ';' # ;\nt = '''a;\nb;'''\n")) == ["gpvae/m.py:1 joins statements by a semicolon"]

LONG = "g(" + "1234567890, " * 8 + "0)" # with `for x in y: ` before it, 112 characters

@pytest.mark.parametrize("source", [
    "if x: y = 1\n", "if x: y = 1\nelif z: y = 2\nelse: y = 3\n", "def f(x): return x + 1\n", f"def f(x): return {LONG}\n",
    "class A:\n    @property\n    def f(self) -> int: return 1\n", "for x in y: f(x)\n", "with f(): g()\n", "try: f()\nexcept E: g()\nfinally: h()\n",
    "def f(x,\n      y): return x\n", "for x in y:\n    if x: continue\n    f(x)\n", f"for x in y:\n    {LONG}\n", "class A:\n    'Text.'\n", "while f(): g()\n", f"if x: {LONG}\n"])
def test_bodies_that_may_stand_on_the_line_of_their_head(source): assert crowded_bodies(module(source)) == []

@pytest.mark.parametrize("source, said", [
    (f"for x in y: {LONG}\n", "a loop, with or try and its body in 112 characters"), (f"while x: {LONG}\n", "a loop"), (f"with f(): {LONG}\n", "a loop, with or try"),
    (f"try: {LONG}\nexcept E: g()\n", "a loop, with or try"), (f"try: f()\nexcept E: {LONG}\n", "a loop, with or try"), (f"try: f()\nfinally: {LONG}\n", "a loop, with or try"),
    (f"for x in y: f()\nelse: {LONG}\n", "a loop, with or try"), ("class A(B): x = 1\n", "the body of a class"), ("class A: pass\n", "the body of a class"),
    ("if x: y = (1 +\n           2)\n", "ends it elsewhere"), ("def f(x): return dict(\n    a=1)\n", "ends it elsewhere")])
def test_bodies_that_may_not(source, said): assert said in crowded_bodies(module(source))[0] and len(crowded_bodies(module(source))) == 1

def test_exported_names_are_counted():
    assert exported(module("__all__ = ['a', 'b']\n_c = 1\n")) == ["a", "b"] and exported(module("x = 1\n")) == []

@pytest.mark.parametrize("source, n", [("hasattr(model.encoder, 'a')", 1), ("getattr(encoder, 'a', None)", 1), ("hasattr(e, 'a')", 1), ("hasattr(q, 'a')", 0), ("getattr(self, k)", 0),
                                       ("hasattr(decoder, 'a')", 0), ("encoder.hasattr('a')", 0)])
def test_questions_to_encoders_are_counted(source, n): assert len(questions(module(source))) == n

@pytest.mark.parametrize("source", ["from .study.run import run", "from .study import run", "from gpvae.study import run", "import gpvae.study.run", "from . import study",
                                    "from gpvae import study", "def f():\n    from .study.run import run"])
def test_the_library_imports_nothing_of_the_study(source):
    assert upward_imports(module(source)) and not upward_imports(module(source, "gpvae/study/x.py"))
    deeper = source.replace("from .", "from ..")
    assert upward_imports(module(deeper, "gpvae/baselines/x.py"))

def test_imports_have_full_names():
    assert {name for _, name in imports(module("from ..vae import VAE\nfrom . import iaf\nimport torch.nn", "gpvae/baselines/x.py"))} >= {"gpvae.vae", "gpvae.vae.VAE", "gpvae.encoders.iaf", "torch.nn"}
    assert not upward_imports(module("from .studying import x\nfrom gpvae.vae import study"))

@pytest.fixture
def checkout(tmp_path):
    "A library of two modules, a study, and two pages, without a fault."
    files = {"gpvae/__init__.py": "", "gpvae/vae.py": "__all__ = ['x']\nx = 1\n", "gpvae/study/__init__.py": "", "gpvae/study/run.py": "from ..vae import x\n",
             "nbs/40_gp_encoder.ipynb": json.dumps({"cells": [{"source": ["from gpvae.vae import x\n"]}]}),
             "nbs/60_train.ipynb": json.dumps({"cells": [{"source": ["gpvae.study is mentioned"]}]})}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path

def test_a_sound_checkout_has_no_fault(checkout):
    faults, sizes = check(checkout)
    assert faults == [] and sizes.startswith("2 modules: ") and "1 exported names" in sizes

@pytest.mark.parametrize("page", ["40_gp_encoder", "51_iaf", "56_laplace"])
def test_method_pages_do_not_mention_the_study(checkout, page):
    (checkout / f"nbs/{page}.ipynb").write_text(json.dumps({"cells": [{"source": "x"}, {"source": ["from gpvae.", "study.run import run"]}]}))
    assert upward_pages(checkout) == [f"nbs/{page}.ipynb: cell 1 mentions gpvae.study"]

def test_what_an_import_brings_is_seen(checkout):
    "Also where the source does not say it."
    (checkout / "gpvae/vae.py").write_text("x = __import__('importlib').import_module('gpvae' + '.study')\n")
    assert loaded_study(checkout) == ["the import of the library brings gpvae.study"]
    (checkout / "gpvae/vae.py").write_text("import nothing_of_this_name\n")
    assert loaded_study(checkout) == ["the library cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_name'"]

def test_too_many_names_and_questions_are_faults(checkout, monkeypatch):
    (checkout / "gpvae/vae.py").write_text("__all__ = ['x']\nx = [hasattr(encoder, 'a'), getattr(encoder, 'a', 1)]\n")
    assert check(checkout, load=False)[0] == []
    monkeypatch.setattr(style_check, "NAMES", 0)
    monkeypatch.setattr(style_check, "QUESTIONS", 1)
    faults, _ = check(checkout, load=False)
    assert [f.split(":")[0] for f in faults] == ["the modules export 1 names, more than 0", "gpvae/vae.py", "gpvae/vae.py", "encoders are asked 2 times, more than 1"]

def test_the_command_says_what_is_wrong(checkout, monkeypatch, capsys):
    monkeypatch.setattr(style_check, "ROOT", checkout)
    main()
    assert "2 modules" in capsys.readouterr().out
    (checkout / "gpvae/vae.py").write_text("x = 1; y = 2\n")
    with pytest.raises(SystemExit, match="gpvae/vae.py:1 joins statements"): main()
