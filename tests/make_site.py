"""Write the site into _docs: nbdev processes the pages, `finish` does what it leaves undone, the user's
Quarto renders.
`make_site.py --check` only says whether Quarto is there."""
import ast
import base64
import html
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = "GPVAE_DOC_HOST"  # address of the site, in place of that of settings.ini
NOTEBOOKS = "notebooks"  # the folder of the site that holds the pages for download
MANY = 4  # names that the title of folded source spells out
FOLDED = re.compile(r'^#\| code-fold: (?:show|true)\n#\| code-summary: "Exported source"\n?')
NESTED_LINK = re.compile(r"(\[(?:[^\[\]\n]|\[[^\[\]\n]*\](?:\([^()\s]*\))?)*)\[(`[^`\n]+`)\]\([^()\s]*\)"
                         r"(?=[^\[\]\n]*\]\()")
PRIVATE_LINK = re.compile(r"\[(`(?:\w+\.)*_\w+`)\]\([^()\s]*\)")
CODE_BLOCK = re.compile(r'<code class="sourceCode python">(.*?)</code>', re.S)
CODE_LINE = re.compile(r'<span id="cb[\w-]+">(.*?)</span>\n?(?=<span id="cb|$)', re.S)
NO_QUARTO = "make site needs Quarto 1.7 or newer on PATH: see https://quarto.org/docs/get-started/"

def source(cell):
    "The text of a cell, however the file stores it."
    return "".join(cell.get("source") or "")

def process(root=ROOT):
    """What Quarto is handed, in _proc. nbdev's own commands would install Quarto, so its parts are called
    instead."""
    from nbdev.config import get_config
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    proc = get_config().config_path / "_proc"
    shutil.rmtree(proc, ignore_errors=True)  # it is a cache
    refresh_quarto_yml()
    proc = Path(proc_nbs(force=True, n_workers=2))
    settings = root / "nbs/nbdev.yml"  # written by refresh_quarto_yml
    settings.write_text(with_host(settings.read_text(encoding="utf-8"), os.environ.get(HOST)),
                        encoding="utf-8")
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
    fields, classes = named_tuples(original), defined_classes(original)
    cells = []
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            if not source(cell).strip():
                continue
            cell["outputs"] = [shown(output, fields, classes) for output in cell.get("outputs", [])]
            if cells and is_folded(cells[-1]) and is_folded(cell):
                cells[-1]["source"] = source(cells[-1]) + "\n\n" + FOLDED.sub("", source(cell))
                continue
        cells.append(cell)
    for cell in cells:
        if is_folded(cell):
            cell["source"] = folded(source(cell))
        elif cell["cell_type"] == "markdown":
            cell["source"] = without_nested_links(source(cell))
    if name.startswith("results/"):
        hide_code(cells)
    link = f"::: {{.notebook-link}}\n[Download this page as a notebook](/{NOTEBOOKS}/{name})\n:::"
    cells.append(dict(cell_type="markdown", id="notebook-link", metadata={}, source=link))
    for cell in cells:  # Quarto drops the line breaks of a string
        cell["source"] = source(cell).splitlines(keepends=True)
    return nb | {"cells": cells}

def is_folded(cell):
    "Whether a cell is exported source that nbdev shows below its documentation, without outputs of its own."
    return cell["cell_type"] == "code" and not cell.get("outputs") and bool(FOLDED.match(source(cell)))

def folded(text):
    "Exported source, opened on demand, under the names that it defines."
    code = FOLDED.sub("", text)
    names = definitions(code)
    title = ", ".join(names[:MANY]) + (f" and {len(names) - MANY} more" if len(names) > MANY else "")
    return f'#| code-fold: true\n#| code-summary: "Source{f": {title}" if title else ""}"\n{code}'

def definitions(text):
    "The names that a cell binds at its top."
    found = []
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return list(dict.fromkeys(found))

def without_nested_links(text):
    """nbdev links every exported name in backticks, inside a hand-written link too, which then is none;
    and private names, which have no place on their page."""
    text = PRIVATE_LINK.sub(r"\1", text)
    while (inner := NESTED_LINK.sub(r"\1\2", text)) != text:
        text = inner
    return text

def shown(output, fields=(), classes=()):
    """Quarto adds require.js and jQuery from a remote host to a page with an HTML output: raw HTML in
    Markdown shows the same.
    Pictures with many dots an inch are shown in the size that they were drawn for."""
    data = output.get("data", {})
    if "text/html" in data:
        table = re.sub(r"<style scoped>.*?</style>| border=\"1\"", "", "".join(data["text/html"]), flags=re.S)
        output["data"] = {"text/markdown": f"```{{=html}}\n{one_header(table).strip()}\n```"}
    elif "text/markdown" in data:
        text = with_classes("".join(data["text/markdown"]), dict(fields), set(classes))
        output["data"] = {"text/markdown": unbroken_numbers(without_nested_links(text))}
    elif "image/png" in data:
        width = drawn_width(base64.b64decode("".join(data["image/png"])))
        if width:
            output["metadata"] = {**output.get("metadata", {}), "image/png": {"width": width}}
    return output

def unbroken_numbers(text):
    "In the rows of a table a number stays on one line with its error, an interval with its ends."
    rows = text.split("\n")
    for i, row in enumerate(rows):
        if row.startswith("|"):
            row = re.sub(r"(\d) ± (?=\d)", "\\1\u00a0±\u00a0", row)
            rows[i] = re.sub(r"(\[[-−+]?[\d.]+), (?=[-−+]?\d)", "\\1,\u00a0", row)
    return "\n".join(rows)

def one_header(html):
    "pandas gives the name of the index a header row of its own, empty but for that name."
    rows = re.match(
        r"(.*?<thead>\s*<tr[^>]*>\s*<th>)(</th>.*?</tr>)\s*<tr>\s*<th>([^<]*)</th>(?:\s*<th></th>)*\s*</tr>"
        r"(\s*</thead>.*)", html, flags=re.S
    )
    return html if rows is None else rows[1] + rows[3] + rows[2] + rows[4]

def drawn_width(png):
    "Pixels of the page that a picture of more than 100 dots an inch takes; None for others."
    dots = png.find(b"pHYs")
    if png[:8] != b"\x89PNG\r\n\x1a\n" or dots < 0:
        return None
    width, per_inch = (struct.unpack(">I", png[16:20])[0],
                       struct.unpack(">I", png[dots + 4 : dots + 8])[0] * 0.0254)
    return round(width * 100 / per_inch) if per_inch > 101 else None

def with_classes(text, fields, classes):
    "nbdev documents a class as `def`, and a NamedTuple by `*args, **kwargs`: its fields say more."
    bare = re.search(r"^def (\w+)\(\n\s*\*args, \*\*kwargs\n\)(->None)?:", text, flags=re.M)
    if bare:
        lines = fields.get(bare[1])
        text = text.replace(bare[0], f"class {bare[1]}" if lines is None else
                            f"class {bare[1]}(\n" + "".join(f"    {line}\n" for line in lines) + ")")
    made = re.search(r"^```python\ndef (\w+)(\(.*?^\))(?:->[^\n]*)?:$", text, flags=re.M | re.S)
    if made and made[1] in classes:
        text = text.replace(made[0], f"```python\nclass {made[1]}{made[2]}")
    return text

def defined_classes(nb):
    "The names of the classes of a notebook."
    texts = [source(c) for c in nb["cells"] if c["cell_type"] == "code"]
    return set(re.findall(r"^class (\w+)", "\n".join(texts), flags=re.M))

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
                        for f in node.body if isinstance(f, ast.AnnAssign)] for node in ast.parse(text).body
            if isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "NamedTuple" for b in node.bases)}

def hide_code(cells):
    "A result page shows no code: its front matter says so to Quarto."
    front = next((c for c in cells if c["cell_type"] == "raw" and source(c).startswith("---")), None)
    if front is not None and not re.search(r"^execute:", source(front), re.M):
        front["source"] = source(front).replace("---\n", "---\nexecute:\n  echo: false\n", 1)

def render(proc):
    "Run Quarto over what nbdev handed it, show what it says, and return its warnings."
    warnings = []
    with subprocess.Popen(["quarto", "render", "--no-cache"], cwd=proc, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if "WARN" in line or "ERROR" in line:
                warnings.append(line.strip())
    if process.returncode:
        sys.exit(f"Quarto ended with status {process.returncode}")
    return warnings

def html_faults(proc, docs):
    "Markup that Quarto left as it was, and code whose line breaks are lost, on the pages that were made."
    faults = []
    for page in sorted(p for p in proc.rglob("*.ipynb") if NOTEBOOKS not in p.relative_to(proc).parts):
        made = docs / html_name(page.relative_to(proc).as_posix())
        if not made.exists():
            continue
        name, text = made.relative_to(docs).as_posix(), made.read_text(encoding="utf-8")
        if ":::" in re.sub(r"<(pre|code|script)\b.*?</\1>", "", text, flags=re.S):
            faults.append(f"{name}: a raw `:::`")
        known = known_lines(page)
        lines = [line for block in CODE_BLOCK.findall(text) for line in CODE_LINE.findall(block)]
        lines = [html.unescape(re.sub(r"<[^>]+>", "", line)).strip() for line in lines]
        lost = [line for line in lines if line not in known]
        if lost:
            faults.append(
                f"{name}: {len(lost)} lines of code that its notebook does not have: {lost[0][:60]!r} ..."
            )
    return faults

def html_name(page):
    "The file that nbdev and Quarto make of a page: without its number."
    return re.sub(r"(^|/)\d+[a-zA-Z0-9]*_", r"\1", page).removesuffix(".ipynb") + ".html"

def known_lines(notebook):
    "Every line of a processed page, its outputs too."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = [source(c) for c in cells] + ["".join(o.get("data", {}).get("text/markdown", "")) for c in cells
                                          for o in c.get("outputs", [])]
    return {line.strip() for text in texts for line in text.splitlines()} | {""}

def main(only_check=False):
    if not shutil.which("quarto"):
        sys.exit(NO_QUARTO)
    if only_check:
        return
    proc = process()
    faults = render(proc) + html_faults(proc, proc / "_docs")
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(proc / "_docs", ROOT / "_docs")
    print("the site is in _docs: open _docs/index.html")
    if faults:
        sys.exit("\n".join(["the site has faults:", *faults]))

if __name__ == "__main__":
    main("--check" in sys.argv[1:])
