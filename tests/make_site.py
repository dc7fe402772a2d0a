"""Write the site into _docs: nbdev processes the pages, `finish` does what it leaves undone, the user's Quarto renders.
`make_site.py --check` only says whether Quarto is there."""
import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = "GPVAE_DOC_HOST"  # where the site will stand, e.g. https://someone.github.io/gpvae; without it settings.ini says
NOTEBOOKS = "notebooks"  # the folder of the site that holds the pages for download
NO_QUARTO = "make site needs Quarto 1.7 or newer on PATH: https://quarto.org/docs/get-started/ has it for every system"


def source(cell):
    "The text of a cell, however the file stores it."
    return "".join(cell.get("source") or "")


def process(root=ROOT):
    "What Quarto is handed, in _proc. nbdev's own commands would install Quarto, so its parts are called instead."
    from nbdev.config import get_config
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    proc = get_config().config_path / "_proc"
    shutil.rmtree(proc, ignore_errors=True)  # it is a cache
    refresh_quarto_yml()
    proc = Path(proc_nbs(force=True, n_workers=2))
    settings = root / "nbs/nbdev.yml"  # written by refresh_quarto_yml
    settings.write_text(with_host(settings.read_text(encoding="utf-8"), os.environ.get(HOST)), encoding="utf-8")
    shutil.copy2(settings, proc)
    for page in sorted(p for p in proc.rglob("*.ipynb") if (root / "nbs" / p.relative_to(proc)).exists()):
        finish_file(page, root / "nbs" / page.relative_to(proc), page.relative_to(proc).as_posix(), proc)
    return proc


def with_host(text, host):
    "nbdev's settings of the site, with the address of `host` if there is one."
    return text if not host else re.sub(r"^(\s*site-url:).*$", rf'\1 "{host.rstrip("/")}"', text, flags=re.M)


def finish_file(page, origin, name, proc):
    "Finish one processed page, and put its notebook where readers can download it."
    original = json.loads(origin.read_text(encoding="utf-8"))
    done = finish(json.loads(page.read_text(encoding="utf-8")), original, name)
    page.write_text(json.dumps(done, indent=1, ensure_ascii=False), encoding="utf-8")
    copy = proc / NOTEBOOKS / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(origin, copy)


def finish(nb, original, name):
    "The processed page `nb` of the notebook `original`, as the site shows it."
    fields = named_tuples(original)
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["source"] = folded(source(cell))
            cell["outputs"] = [shown(output, fields) for output in cell.get("outputs", [])]
    if name.startswith("results/"):
        hide_code(nb)
    link = f"::: {{.notebook-link}}\n[Download this page as a notebook](/{NOTEBOOKS}/{name})\n:::"
    nb["cells"].append(dict(cell_type="markdown", id="notebook-link", metadata={}, source=link))
    return nb


def folded(text):
    "nbdev shows exported source unfolded below its documentation; a reader opens it on demand."
    return re.sub(r'^#\| code-fold: show\n(?=#\| code-summary: "Exported source")', "#| code-fold: true\n", text)


def shown(output, fields):
    """Quarto adds require.js and jQuery from a remote host to a page with an HTML output: raw HTML in Markdown shows the same.
    nbdev documents a NamedTuple by `*args, **kwargs`: its fields say more."""
    data = output.get("data", {})
    if "text/html" in data:
        html = re.sub(r"<style scoped>.*?</style>| border=\"1\"", "", "".join(data["text/html"]), flags=re.S)
        output["data"] = {"text/markdown": f"```{{=html}}\n{html.strip()}\n```"}
    elif "text/markdown" in data:
        output["data"] = {"text/markdown": with_fields("".join(data["text/markdown"]), fields)}
    return output


def with_fields(text, fields):
    "The documentation of a NamedTuple with its fields in place of `*args, **kwargs`; that of another class without those."
    found = re.search(r"^def (\w+)\(\n\s*\*args, \*\*kwargs\n\)(->None)?:", text, flags=re.M)
    if not found:
        return text
    lines = fields.get(found[1])
    shown = f"class {found[1]}" if lines is None else f"class {found[1]}(\n" + "".join(f"    {x}\n" for x in lines) + ")"
    return text.replace(found[0], shown)


def named_tuples(nb):
    "Field lines of each NamedTuple of a notebook, by name: `field: type = default, # meaning`."
    found = {}
    for cell in nb["cells"]:
        if cell["cell_type"] == "code" and "NamedTuple)" in source(cell):
            found |= tuples_of(source(cell))
    return found


def tuples_of(text):
    "The same of one cell."
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    return {node.name: [f"{ast.unparse(f)}, {comments.get(f.end_lineno, '')}".rstrip()
                        for f in node.body if isinstance(f, ast.AnnAssign)]
            for node in ast.parse(text).body
            if isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "NamedTuple" for b in node.bases)}


def hide_code(nb):
    "A result page shows no code: its front matter says so to Quarto."
    front = next((c for c in nb["cells"] if c["cell_type"] == "raw" and source(c).startswith("---")), None)
    if front is not None and not re.search(r"^execute:", source(front), re.M):
        front["source"] = source(front).replace("---\n", "---\nexecute:\n  echo: false\n", 1)


def main(only_check=False):
    if not shutil.which("quarto"):
        sys.exit(NO_QUARTO)
    if only_check:
        return
    proc = process()
    subprocess.run(["quarto", "render", "--no-cache"], cwd=proc, check=True)
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(proc / "_docs", ROOT / "_docs")
    print("the site is in _docs: open _docs/index.html")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
