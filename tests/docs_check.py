"Check the site's input without Quarto: pages, sidebar, cross references, links, outputs, paths, sizes. `--page FILE` checks one executed page."
import ast
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import yaml

LINES, BYTES = 40, 1_000_000
TEMPLATES = ("reproduce.ipynb", "gap.ipynb")
EXPORTS = re.compile(r"^\s*#\|\s*(default_exp|exporti?|exports)\b", re.M)
DEFINED = re.compile(r"\{#((?:eq|fig|tbl|sec)-[\w-]+)|^#\|\s*label:\s*((?:fig|tbl)-[\w-]+)", re.M)
REFERRED = re.compile(r"(?<![\w@`\\])@((?:eq|fig|tbl|sec)-\w+(?:-\w+)*)", re.I)
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)[^)]*\)")
TEXT = {".py", ".md", ".ipynb", ".yml", ".ini", ".txt", ".csv", ".json", ".mplstyle", ""}

# One page: a notebook as JSON.

def read(path): return json.loads(Path(path).read_text(encoding="utf-8"))
def source(cell): return "".join(cell.get("source") or "")
def cells(nb, kind): return [(i, source(c), c) for i, c in enumerate(nb["cells"]) if c["cell_type"] == kind]
def prose(text): return re.sub(r"^(```+|~~~+).*?^\1\s*$", "", text, flags=re.M | re.S)
def outputs(nb): return [(i, o) for i, _, c in cells(nb, "code") for o in c.get("outputs", [])]

def long_cells(nb):
    counts = [(i, sum(bool(line.strip()) for line in text.splitlines())) for i, text, _ in cells(nb, "code")]
    return [f"cell {i} has {n} lines of code, more than {LINES}" for i, n in counts if n > LINES]

def mixed_cells(nb):
    "nbdev executes the cells that import, in part or not, to document a page; the others it skips, so what they define is missing."
    return [f"cell {i} mixes imports with other code" for i, text, _ in cells(nb, "code") if mixed(text)]

def mixed(text):
    "Is there code beside the imports? Those inside functions count where the cell is not exported, as they do for nbdev."
    try: tree = ast.parse(re.sub(r"^\s*[%!].*$", "", text, flags=re.M))
    except SyntaxError: return False
    imports, (top, deep) = (ast.Import, ast.ImportFrom), (tree.body, ast.walk(tree))
    return any(isinstance(n, imports) for n in (top if EXPORTS.search(text) else deep)) and not all(isinstance(n, imports) for n in top)

def bad_outputs(nb):
    return [f"cell {i} holds an error: {o.get('ename')}" for i, o in outputs(nb) if o["output_type"] == "error"] + \
           [f"cell {i} wrote to stderr: {''.join(o['text']).strip()[:80]!r}" for i, o in outputs(nb) if o.get("name") == "stderr"]

def fences(nb):
    "Divs open and close within a page; a closing fence is colons alone."
    depth = 0
    for i, text, _ in cells(nb, "markdown"):
        for line in re.findall(r"^\s*:::+(.*)$", prose(text), flags=re.M):
            depth += 1 if line.strip() else -1
            if depth < 0: return [f"cell {i} closes a ::: fence that is not open"]
    return [f"{depth} ::: fences stay open"] if depth else []

def references(nb):
    "Quarto resolves a reference within its page only; the text may come from Markdown cells and Markdown outputs."
    made = ["".join(o["data"]["text/markdown"]) for _, o in outputs(nb) if "text/markdown" in o.get("data", {})]
    text = [prose(t) for _, t, _ in cells(nb, "markdown")] + made
    labels = [a or b for t in text + [t for _, t, _ in cells(nb, "code")] for a, b in DEFINED.findall(t)]
    used = {r for t in text for r in REFERRED.findall(re.sub(r"`[^`\n]*`", "", t))}
    return [f"@{r} has no definition on this page" for r in sorted(used - set(labels))] + \
           [f"{{#{name}}} is defined {n} times" for name, n in sorted(Counter(labels).items()) if n > 1]

def heading(nb):
    "nbdev makes the first cell the title and drops what else stands in it."
    first = next((t for _, t, _ in cells(nb, "markdown")), "")
    lines = [line for line in first.splitlines() if line.strip()]
    if not lines or not lines[0].startswith("# "): return ["the first Markdown cell is not `# Title`"]
    lost = [line for line in lines[1:] if not re.match(r">\s|-\s.*:", line)]
    return [f"the site drops this line of the title cell: {lost[0][:60]!r}"] if lost else []

def template(nb):
    "papermill writes over the defaults of the one cell tagged `parameters`; an exporting directive would overwrite a module."
    tagged = [c for _, _, c in cells(nb, "code") if "parameters" in c.get("metadata", {}).get("tags", [])]
    front = "".join(t for _, t, _ in cells(nb, "raw"))
    return ([] if len(tagged) == 1 else [f"{len(tagged)} cells are tagged `parameters`, not one"]) + \
           ([] if re.search(r"^skip_exec:\s*true", front, re.M) else ["the front matter lacks `skip_exec: true`"])

def exporting(nb): return [f"cell {i} has an exporting directive" for i, t, _ in cells(nb, "code") if EXPORTS.search(t)]

def check_page(path, is_template=False, is_result=False):
    "All faults of one notebook as it stands in nbs/."
    nb = read(path)
    checks = [heading, long_cells, mixed_cells, bad_outputs, fences] + [template] * is_template + [exporting] * (is_template or is_result)
    return [f for check in checks for f in check(nb)]

def check_processed(path):
    "All faults of one notebook as nbdev hands it to Quarto."
    nb = read(path)
    return bad_outputs(nb) + fences(nb) + references(nb)

# The site: which pages, in which order, under which names.

def entries(contents):
    "The targets of a sidebar, top to bottom."
    for item in contents:
        if isinstance(item, str): yield item
        else:
            yield from filter(None, [item.get("href")])
            yield from entries(item.get("contents", []))

def check_sidebar(nbs, config, pages):
    "Every target exists, every page is reached or left out by name in `render`."
    named = list(entries(config["website"]["sidebar"]["contents"]))
    left_out = {r[1:] for r in config["project"].get("render", []) if r.startswith("!")}
    return [f"_quarto.yml: the sidebar names {t}, which does not exist" for t in named if not t.startswith("http") and not (nbs / t).exists()] + \
           [f"_quarto.yml: the sidebar names {t} {n} times" for t, n in Counter(named).items() if n > 1] + \
           [f"{p}: not in the sidebar, nor left out by `render: [\"!{p}\"]`" for p in pages if p not in set(named) | left_out] + \
           [f"_quarto.yml: `render` leaves out {p}, which the sidebar names" for p in sorted(left_out & set(named))]

def html_name(page): return re.sub(r"(^|/)\d+[a-zA-Z0-9]*_", r"\1", page).removesuffix(".ipynb") + ".html"

def check_names(pages):
    "nbdev drops the number of a page: two pages must not become one file."
    names = Counter(map(html_name, pages))
    return [f"{', '.join(p for p in pages if html_name(p) == name)}: all become {name}" for name, n in names.items() if n > 1]

def check_links(nbs, path, pages):
    "Links from one page to another, nbdev's own among them, lead to a page."
    here, known = path.parent.relative_to(nbs), {html_name(p) for p in pages} | set(pages)
    text = "\n".join(re.sub(r"`[^`\n]*`(?!\])", "", prose(t)) for _, t, _ in cells(read(path), "markdown"))
    return [f"a link leads nowhere: {target}" for target in LINK.findall(text)
            if target.endswith((".html", ".ipynb")) and (target[1:] if target.startswith("/") else (here / target).as_posix()) not in known]

# The tree.

def tracked(root):
    "The files that are part of the project: git's, with new ones that it does not ignore."
    found = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    if found.returncode: return [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and not re.search(r"(^|/)(\.\w|_proc|__pycache__)", p.relative_to(root).as_posix())]
    return [f for f in found.stdout.splitlines() if (root / f).is_file()]

def machine_paths(root):
    "Folders that only exist here: homes, the kernel's files, and where this checkout lies."
    own = {str(p) + "/" for p in (root.resolve(), root.resolve().parent)} - {"/", tempfile.gettempdir() + "/"}
    return re.compile(r"(?<![\w.$}])(?:/(?:root|home)/|/tmp/ipyker[n]el|" + "|".join(map(re.escape, sorted(own))) + ")")

def check_files(root, names):
    faults, pattern = [], machine_paths(root)
    for name in names:
        path = root / name
        if path.stat().st_size > BYTES: faults.append(f"{name}: {path.stat().st_size / 1e6:.1f} MB, more than 1 MB")
        elif path.suffix in TEXT and (hit := pattern.search(path.read_text(encoding="utf-8", errors="ignore"))):
            faults.append(f"{name}: a path of this machine: {hit[0]}")
    return faults

def process():
    "What nbdev hands to Quarto, into _proc; nbdev's own commands would install Quarto."
    from nbdev.config import get_config
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    proc = get_config().config_path / "_proc"
    subprocess.run(["rm", "-rf", str(proc)], check=True)  # it is a cache
    refresh_quarto_yml()
    return Path(proc_nbs(force=True, n_workers=2))

def check(root, proc=process):
    "All faults of a checkout."
    nbs, files = root / "nbs", tracked(root)
    pages = sorted(f.removeprefix("nbs/") for f in files if f.startswith("nbs/") and f.endswith(".ipynb"))
    config = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
    shown = [p for p in pages if f"!{p}" not in config["project"].get("render", [])]
    faults = check_sidebar(nbs, config, pages) + check_names(shown) + check_files(root, files)
    for p in pages: faults += [f"{p}: {f}" for f in check_page(nbs / p, p in TEMPLATES, p.startswith("results/"))]
    try: done = proc()
    except Exception as e: return faults + [f"nbdev cannot process a page: {e}"]
    missing = [f"{p}: nbdev did not process it" for p in pages if not (done / p).exists()]
    for p in [p for p in pages if (done / p).exists()]: faults += [f"{p}: {f}" for f in check_processed(done / p) + check_links(done, done / p, shown)]
    print(f"{len(pages)} pages, {len(files)} files checked")
    return faults + missing

def main(args):
    faults = check_page(args[1], is_result=True) if args[:1] == ["--page"] else check(Path(__file__).resolve().parent.parent)
    if faults: sys.exit("\n".join(dict.fromkeys(faults)))

if __name__ == "__main__": main(sys.argv[1:])
