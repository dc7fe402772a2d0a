"""Check what Quarto cannot say of the site's input: sidebar, references, links, outputs, figures, sizes,
paths of a machine.

`docs_check.py --page FILE` checks one executed page."""
import ast
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path, PurePosixPath

import yaml

import make_site
from make_site import html_name, source

BYTES = 1_000_000
TEMPLATES = ("reproduce.ipynb", "gap.ipynb")
EXPORTED = re.compile(r"^\s*#\|\s*(default_exp|exporti?|exports)\b", re.M)
DEFINED = re.compile(r"\{#((?:eq|fig|tbl|sec)-[\w-]+)|^#\|\s*label:\s*((?:fig|tbl)-[\w-]+)", re.M)
REFERRED = re.compile(r"(?<![\w@`\\])@((?:eq|fig|tbl|sec)-\w+(?:-\w+)*)", re.I)
LINK = re.compile(r"\]\((?!\w+:|//)([^)\s#]*)(#[^)\s]+)?[^)]*\)"
                  r"|<a\s[^>]*href=[\"'](?!\w+:|//)([^\"'#]*)(#[^\"']+)?")
REMOTE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=\s*[\"']?(?:https?:)?//[^\"'\s>]*"
                    r"|!\[[^\]]*\]\(https?://[^)\s]*|@import\b[^;]*https?://|url\(\s*[\"']?https?://", re.I)
TEXT = {".py", ".md", ".ipynb", ".yml", ".toml", ".cff", ".ini", ".txt", ".csv", ".json", ".mplstyle", ".css",
        ".scss", ".html", ".svg", ""}

# One page: a notebook as JSON.

def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))

def cells(nb, kind):
    return [(i, source(c), c) for i, c in enumerate(nb["cells"]) if c["cell_type"] == kind]

def prose(text):
    "Markdown without its fenced code; `{=html}` is no code."
    return re.sub(r"^(```+|~~~+)(?!\{=html\}).*?^\1\s*$", "", text, flags=re.M | re.S)

def words(text):
    "The same without code in the line."
    return re.sub(r"`[^`\n]*`(?!\])", "", prose(text))

def outputs(nb):
    return [(i, o) for i, _, c in cells(nb, "code") for o in c.get("outputs", [])]

def texts(nb, *kinds):
    "(cell, text) of the Markdown cells and of the outputs that a page shows as text."
    shown = [(i, "".join(o["data"][kind])) for i, o in outputs(nb)
             for kind in kinds if kind in o.get("data", {})]
    return [(i, text) for i, text, _ in cells(nb, "markdown")] + shown

def everything(nb):
    return texts(nb, "text/markdown", "text/html")

def parsed(text):
    "The statements of a cell; none where it is no Python."
    try:
        return ast.parse(re.sub(r"^\s*[%!].*$", "", text, flags=re.M)).body
    except SyntaxError:
        return []

def heading(nb):
    "nbdev makes the first cell the title and drops what else stands in it."
    first = next((text for _, text, _ in cells(nb, "markdown")), "")
    lines = [line for line in first.splitlines() if line.strip()]
    if not lines or not lines[0].startswith("# "):
        return ["the first Markdown cell is not `# Title`"]
    lost = [line for line in lines[1:] if not re.match(r">\s|-\s.*:", line)]
    return [f"the site drops this line of the title cell: {lost[0][:60]!r}"] if lost else []

def mixed_cells(nb):
    "nbdev runs the cells with imports to document a page, and skips the others: what they define is missing."
    if nb["cells"] and any("hide-input" in c.get("metadata", {}).get("tags", []) for c in nb["cells"]):
        return []  # a page of results exports nothing
    return [f"cell {i} mixes imports with other code" for i, text, _ in cells(nb, "code") if mixed(text)]

def mixed(text):
    """Whether code stands beside imports; those inside functions count where the cell is not exported, as for
    nbdev."""
    top, imports = parsed(text), (ast.Import, ast.ImportFrom)
    deep = top if EXPORTED.search(text) else [n for s in top for n in ast.walk(s)]
    return any(isinstance(n, imports) for n in deep) and not all(isinstance(n, imports) for n in top)

def raw_references(nb):
    "Quarto resolves no reference in source: signatures, comments and docstrings show it as it stands."
    return [f"cell {i} exports the raw reference @{name}: name the equation in words" for i, text, _
            in cells(nb, "code") if EXPORTED.search(text) for name in sorted(set(REFERRED.findall(text)))]

def raw_boxes(nb):
    "JupyterLab shows `:::` as it stands."
    return [f"cell {i} has a `:::` box: use a blockquote with a bold lead"
            for i, text, _ in cells(nb, "markdown") if re.search(r"^\s*:::", prose(text), re.M)]

def bad_outputs(nb):
    errors = [f"cell {i} holds an error: {o.get('ename')}"
              for i, o in outputs(nb) if o["output_type"] == "error"]
    return errors + [f"cell {i} wrote to stderr: {''.join(o['text']).strip()[:80]!r}"
                     for i, o in outputs(nb) if o.get("name") == "stderr"]

def remote(nb):
    "The site loads nothing from another host: no script, style, image, widget."
    widgets = {"application/javascript", "application/vnd.jupyter.widget-view+json"}
    return [f"cell {i} loads from a remote host: {hit[0][:80]}"
            for i, text in everything(nb) if (hit := REMOTE.search(words(text)))] + \
           [f"cell {i} has an output of {kind}, which needs scripts of a remote host"
            for i, o in outputs(nb) for kind in sorted(widgets & set(o.get("data", {})))]

def silent_figures(nb):
    """Every picture has a text for those who do not see it: `#| fig-alt:` in its cell, a list of them for
    several."""
    faults = []
    for i, text, cell in cells(nb, "code"):
        pictures = sum(any(k.startswith("image/") for k in o.get("data", {}))
                       for o in cell.get("outputs", []))
        options = "\n".join(line[2:].removeprefix(" ") for line in text.splitlines() if line.startswith("#|"))
        alt = re.search(r"^fig-alt:(?:.*)(?:\n[ -].*)*", options, re.M)
        alt = yaml.safe_load(alt[0])["fig-alt"] if alt else []
        long = [a for a in (alt if isinstance(alt, list) else [alt]) if len(str(a).split()) >= 3]
        if len(long) < pictures:
            faults.append(
                f"cell {i} shows {pictures} figures with {len(long)} `#| fig-alt:` of three words or more"
            )
    silent = re.compile(r"!\[\s*\]\([^)]*\)(?!\{[^}]*fig-alt=)|<img\b(?![^>]*\balt\s*=\s*[\"'][^\"'])[^>]*>")
    return faults + [f"cell {i} shows an image without alt text: {hit[:60]}"
                     for i, text in everything(nb) for hit in silent.findall(words(text))]

def template(nb):
    "papermill writes over the defaults of the one cell tagged `parameters`."
    tagged = [c for _, _, c in cells(nb, "code") if "parameters" in c.get("metadata", {}).get("tags", [])]
    front = "".join(text for _, text, _ in cells(nb, "raw"))
    return [f"{len(tagged)} cells are tagged `parameters`, not one"] * (len(tagged) != 1) + \
           ["the front matter lacks `skip_exec: true`"] * (not re.search(r"^skip_exec:\s*true", front, re.M))

def exporting(nb):
    "A page of results that exports would overwrite a module."
    return [f"cell {i} has an exporting directive"
            for i, text, _ in cells(nb, "code") if EXPORTED.search(text)]

PAGE = (heading, mixed_cells, raw_references, bad_outputs, remote, silent_figures)

def check_page(path, is_template=False, is_result=False):
    "All faults of one notebook as it stands in nbs/."
    generated = is_template or is_result
    checks = [*PAGE, *[template] * is_template, exporting if generated else raw_boxes]
    return [fault for nb in [read(path)] for check in checks for fault in check(nb)]

# One page as nbdev hands it to Quarto.

def references(nb):
    """Quarto resolves a reference within its page only; the text may come from Markdown cells and Markdown
    outputs."""
    text = [prose(t) for _, t in texts(nb, "text/markdown")]
    labels = [a or b for t in text + [t for _, t, _ in cells(nb, "code")] for a, b in DEFINED.findall(t)]
    used = {name for t in text for name in REFERRED.findall(re.sub(r"`[^`\n]*`", "", t))}
    return [f"@{name} has no definition on this page" for name in sorted(used - set(labels))] + \
           [f"{{#{name}}} is defined {n} times" for name, n in sorted(Counter(labels).items()) if n > 1]

def headings(nb):
    text = "\n".join(prose(t) for _, t in texts(nb, "text/markdown"))
    return re.findall(r"^#{1,6}\s+(.*?)\s*$", text, flags=re.M)

def collisions(nb):
    """Anchors know no case: a class, a function and a heading of one spelling share theirs, and links lead to
    the first."""
    shown = ["".join(o.get("data", {}).get("text/markdown", "")) for i, o in outputs(nb)
             if "show_doc" in source(nb["cells"][i])]
    documented = {slug(name) for name in re.findall(r"^### ([\w.]+)$", "\n".join(shown), flags=re.M)}
    return [f"{n} headings share the anchor #{anchor}"
            for anchor, n in Counter(map(slug, headings(nb))).items() if n > 1 and anchor in documented]

def undocumented(nb):
    "What a page documents has a docstring."
    shown = [(i, "".join(o.get("data", {}).get("text/markdown", ""))) for i, o in outputs(nb)
             if "show_doc" in source(nb["cells"][i])]
    return [f"cell {i} documents {name} without a docstring" for i, text in shown
            for name in re.findall(r"^### ([\w.]+)$", text, flags=re.M)
            if not re.search(r"^\*[^*\s]", text, re.M)]

PROCESSED = (bad_outputs, references, collisions, undocumented)

def check_processed(path):
    "All faults of one notebook as nbdev hands it to Quarto."
    return [fault for nb in [read(path)] for check in PROCESSED for fault in check(nb)]

def anchors(nb):
    "The places of a processed page that a link can name: headings, by pandoc's rule, and whatever has an id."
    text = "\n".join(prose(t) for _, t in everything(nb))
    labels = DEFINED.findall("\n".join(t for _, t, _ in cells(nb, "code")))
    ids = re.findall(r"\{#([\w.:-]+)|\bid=[\"']([^\"']+)", text) + labels
    return {slug(h) for h in headings(nb)} | {a or b for a, b in ids}

def slug(heading):
    "pandoc's identifier of a heading."
    text = re.sub(r"\s*\{[^}]*\}\s*$", "", heading)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "").replace("*", "")
    text = re.sub(r"[^\w\s.-]", "", text).strip().lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", text)) or "section"

# The site: which pages, in which order, under which names.

def rendered(config, pages):
    "The pages that Quarto renders: all but those that the configuration names, `!/` before each."
    left_out = {p.removeprefix("!/") for p in config["project"].get("render", [])}
    return [p for p in pages if p not in left_out]

def entries(contents):
    "The targets of a sidebar, top to bottom."
    for item in contents:
        if isinstance(item, str):
            yield item
        else:
            yield from filter(None, [item.get("href")])
            yield from entries(item.get("contents", []))

def check_sidebar(config, pages):
    """Every target is a page that is rendered, every rendered page is reached, and Quarto's patterns mean
    what they say."""
    named, shown = list(entries(config["website"]["sidebar"]["contents"])), rendered(config, pages)
    patterns = config["project"].get("render", [])
    return ([f"_quarto.yml: the sidebar names {t}, which is no page of the site"
             for t in named if t not in shown]
            + [f"_quarto.yml: the sidebar names {t} {n} times" for t, n in Counter(named).items() if n > 1]
            + [f"_quarto.yml: Quarto leaves {p} out in every folder: write `!/`"
               for p in patterns if re.match(r"!(?!/)", p)]
            + [f"{p}: not in the sidebar, nor left out by `!/{p}`" for p in shown if p not in named])

def check_names(nbs, pages):
    "nbdev drops the number of a page: two pages must not become one file, nor have one title."
    faults = []
    for kind, name_of in (("become", html_name), ("are called", lambda p: heading_of(read(nbs / p)))):
        groups = {}
        for page in pages:
            groups.setdefault(name_of(page), []).append(page)
        faults += [f"{', '.join(same)}: all {kind} {name}" for name, same in groups.items() if len(same) > 1]
    return faults

def heading_of(nb):
    return next((text.splitlines()[0] for _, text, _ in cells(nb, "markdown") if text.strip()), "")

def check_config(config, nbs):
    "The site loads nothing from another host."
    html = config.get("format", {}).get("html", {})
    own = [nbs / name for name in re.findall(r"[\w/.-]+\.(?:s?css|html)\b", yaml.safe_dump(html))]
    loaded = {p.name: p.read_text(encoding="utf-8") for p in own if p.exists()}
    loaded["_quarto.yml"] = yaml.safe_dump(config)
    return ([f"_quarto.yml: {p.name} does not exist" for p in own if not p.exists()]
            + [f"{name} loads from a remote host: {hit[0]}"
               for name, text in loaded.items() if (hit := REMOTE.search(text))]
            + ["_quarto.yml: without `html-math-method: mathml` MathJax is remote"]
            * (html.get("html-math-method") != "mathml"))

def links(path):
    "(target, anchor) of every link of a page to another file of the project."
    for _, text in everything(read(path)):
        for a, b, c, d in LINK.findall(words(text)):
            yield a or c, (b or d).removeprefix("#")

def resolved(target, here):
    "The path of a link's target from the top of the site; it begins with `..` where it leads out."
    parts = [] if target.startswith("/") else list(PurePosixPath(here).parts)
    for part in PurePosixPath(target.lstrip("/")).parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)

def check_links(nbs, path, places, files=()):
    """Links from one page to another, nbdev's own among them, lead to a page of the site and to a place
    that it has, those to data to a file.
    `places` has the anchors of each page, by its file and by the file of the site that it becomes."""
    here, own, faults = path.parent.relative_to(nbs).as_posix(), path.relative_to(nbs).as_posix(), []
    for target, anchor in links(path):
        page = resolved(target, here) if target else own
        if page in places:
            if anchor and anchor.lower() not in {a.lower() for a in places[page]}:
                faults.append(f"a link names a place that {page} does not have: #{anchor}")
        elif page.endswith((".html", ".ipynb")) and not page.startswith(make_site.NOTEBOOKS + "/") or \
                not page.startswith(make_site.NOTEBOOKS + "/") and page not in files:
            faults.append(f"a link leads nowhere: {target}")
    return faults

# The tree.

def tracked(root):
    "The files that are part of the project: git's, with new ones that it does not ignore."
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True,
                            text=True)
    if listed.returncode:
        names = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
        return [n for n in names if not re.search(r"(^|/)(\.\w|_proc|__pycache__)", n)]
    return [f for f in listed.stdout.splitlines() if (root / f).is_file()]

def machine_paths(root):
    "Folders that only exist here: homes, the kernel's files, and where this checkout lies."
    own = {str(p) + "/" for p in (root.resolve(), root.resolve().parent)} - {"/", tempfile.gettempdir() + "/"}
    return re.compile(r"(?<![\w.$}])(?:/(?:root|home)/|/tmp/ipyker[n]el|"
                      + "|".join(map(re.escape, sorted(own))) + ")")

def check_files(root, names):
    faults, pattern = [], machine_paths(root)
    for name in names:
        path = root / name
        if path.stat().st_size > BYTES:
            faults.append(f"{name}: {path.stat().st_size / 1e6:.1f} MB, more than 1 MB")
        elif path.suffix in TEXT and (
            hit := pattern.search(path.read_text(encoding="utf-8", errors="ignore"))
        ):
            faults.append(f"{name}: a path of this machine: {hit[0]}")
    return faults

def check_api(root):
    "The index of names is what the package exports now: its page is executed again and compared."
    from execnb.shell import CaptureShell
    page = root / "nbs/api.ipynb"
    if not page.exists():
        return []
    shell, nb = CaptureShell(page.parent), read(page)
    kept = "".join("".join(o["data"]["text/markdown"])
                   for _, o in outputs(nb) if "text/markdown" in o.get("data", {}))
    made = [o for _, text, _ in cells(nb, "code") for o in shell.run(text)]
    now = "".join("".join(o["data"]["text/markdown"]) for o in made if "text/markdown" in o.get("data", {}))
    return ([] if kept.strip() == now.strip()
            else ["api.ipynb: its table is not what the package exports: execute the page"])

def check(root, proc=make_site.process):
    "All faults of a checkout."
    nbs, files = root / "nbs", tracked(root)
    inside = [f.removeprefix("nbs/") for f in files if f.startswith("nbs/")]
    pages = sorted(f for f in inside if f.endswith(".ipynb"))
    config = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
    shown = rendered(config, pages)
    faults = check_config(config, nbs) + check_sidebar(config, pages) + check_names(nbs, shown)
    faults += check_files(root, files) + check_api(root)
    for p in pages:
        faults += [f"{p}: {f}" for f in check_page(nbs / p, p in TEMPLATES, p.startswith("results/"))]
    try:
        done = proc()
    except Exception as e:
        return faults + [f"nbdev cannot process a page: {e}"]
    there = [p for p in shown if (done / p).exists()]
    places = {name: anchors(read(done / p)) for p in there for name in (p, html_name(p))}
    for p in there:
        faults += [f"{p}: {f}"
                   for f in check_processed(done / p) + check_links(done, done / p, places, inside)]
    print(f"{len(pages)} pages, {len(files)} files checked")
    return faults + [f"{p}: nbdev did not process it" for p in shown if p not in there]

def main(args):
    root = Path(__file__).resolve().parent.parent
    faults = check_page(args[1], is_result=True) if args[:1] == ["--page"] else check(root)
    if faults:
        sys.exit("\n".join(dict.fromkeys(faults)))

if __name__ == "__main__":
    main(sys.argv[1:])
