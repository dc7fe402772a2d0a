"Check the site's input without Quarto: pages, sidebar, links, outputs, figures, sizes. `--page FILE` checks one executed page."
import ast
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path, PurePosixPath

import yaml

import make_boxes
import make_site

LINES, CLASS_LINES, WIDTH, BYTES = 40, 80, 110, 1_000_000
TEMPLATES = ("reproduce.ipynb", "gap.ipynb")
EXPORTED = re.compile(r"^\s*#\|\s*(exporti?|exports)\b", re.M)
EXPORTS = re.compile(r"^\s*#\|\s*(default_exp|exporti?|exports)\b", re.M)
SHOWN = re.compile(r"^\s*#\|\s*exports?\b", re.M)  # nbdev documents these
DEFINED = re.compile(r"\{#((?:eq|fig|tbl|sec)-[\w-]+)|^#\|\s*label:\s*((?:fig|tbl)-[\w-]+)", re.M)
REFERRED = re.compile(r"(?<![\w@`\\])@((?:eq|fig|tbl|sec)-\w+(?:-\w+)*)", re.I)
LINK = re.compile(r"\]\((?!\w+:|//)([^)\s#]*)(#[^)\s]+)?[^)]*\)"
                  r"|<a\s[^>]*href=[\"'](?!\w+:|//)([^\"'#]*)(#[^\"']+)?")
REMOTE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=\s*[\"']?(?:https?:)?//[^\"'\s>]*"
                    r"|!\[[^\]]*\]\(https?://[^)\s]*", re.I)
IMPORTED = re.compile(r"(?:@import\b[^;]*|url\(\s*[\"']?)https?://[^\"')\s;]*", re.I)
NOT_A_NUMBER = re.compile(r"<td[^>]*>\s*(?:nan|NaN|NaT|<NA>|&lt;NA&gt;|None|-?inf)\s*</td>"
                          r"|\|\s*(?:nan|NaN|NaT|<NA>|None|-?inf)\s*(?=\|)")
TEXT = {".py", ".md", ".ipynb", ".yml", ".ini", ".txt", ".csv", ".json", ".mplstyle", ".css", ".scss", ".svg", ""}
TOO_WORDY = re.compile(r"\bbudget\b|_|\b(?:static )?(?:mnist|omniglot|cifar10|celeba|svhn)\b")  # a data set's key, not its name


# One page: a notebook as JSON.

def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell.get("source") or "")


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
    found = [(i, t) for i, t, _ in cells(nb, "markdown")]
    return found + [(i, "".join(o["data"][kind])) for i, o in outputs(nb) for kind in kinds if kind in o.get("data", {})]


def everything(nb):
    return texts(nb, "text/markdown", "text/html")


def parsed(text):
    "The statements of a cell; none where it is no Python."
    try:
        return ast.parse(re.sub(r"^\s*[%!].*$", "", text, flags=re.M)).body
    except SyntaxError:
        return []


def long_cells(nb):
    "Cells of code have 40 lines at most, one that holds a class 80."
    counts = [(i, sum(bool(line.strip()) for line in t.splitlines()), limit(t)) for i, t, _ in cells(nb, "code")]
    return [f"cell {i} has {n} lines of code, more than {most}" for i, n, most in counts if n > most]


def limit(text):
    return CLASS_LINES if [type(s) for s in parsed(text)] == [ast.ClassDef] else LINES


def wide_lines(nb):
    "Lines of the package are read side by side."
    wide = [(i, max(map(len, t.splitlines()))) for i, t, _ in cells(nb, "code") if EXPORTED.search(t)]
    return [f"cell {i} exports a line of {n} characters, more than {WIDTH}" for i, n in wide if n > WIDTH]


def mixed_cells(nb):
    "nbdev executes the cells that import, in part or not, to document a page, and skips the others: what they define is missing."
    return [f"cell {i} mixes imports with other code" for i, text, _ in cells(nb, "code") if mixed(text)]


def mixed(text):
    "Is there code beside the imports? Those inside functions count where the cell is not exported, as they do for nbdev."
    top, imports = parsed(text), (ast.Import, ast.ImportFrom)
    deep = top if EXPORTS.search(text) else [n for s in top for n in ast.walk(s)]
    return any(isinstance(n, imports) for n in deep) and not all(isinstance(n, imports) for n in top)


def undocumented(nb):
    "The site shows `Call self as a function.` for what has no docstring."
    bare = [(i, s.name) for i, t, _ in cells(nb, "code") if SHOWN.search(t) for s in parsed(t)
            if isinstance(s, (ast.FunctionDef, ast.ClassDef)) and not s.name.startswith("_") and not ast.get_docstring(s)]
    return [f"cell {i} exports {name} without a docstring" for i, name in bare]


def open_end(nb):
    "nbdev looks behind each cell of `#| exports` for its documentation, and fails where there is nothing."
    last = nb["cells"][-1] if nb["cells"] else {}
    text = source(last)
    bare = not any(isinstance(s, (ast.FunctionDef, ast.ClassDef)) for s in parsed(text))
    ends = last.get("cell_type") == "code" and re.search(r"^\s*#\|\s*exports\b", text, re.M) and bare
    return ["the last cell is `#| exports` without a function: nbdev needs a cell behind it"] if ends else []


def raw_references(nb):
    "Quarto resolves no reference in source: signatures, comments and docstrings show it as it stands."
    return [f"cell {i} exports the raw reference @{r}: name the equation in words"
            for i, t, _ in cells(nb, "code") if EXPORTED.search(t) for r in sorted(set(REFERRED.findall(t)))]


def bad_outputs(nb):
    return [f"cell {i} holds an error: {o.get('ename')}" for i, o in outputs(nb) if o["output_type"] == "error"] + \
           [f"cell {i} wrote to stderr: {''.join(o['text']).strip()[:80]!r}" for i, o in outputs(nb) if o.get("name") == "stderr"]


def remote(nb):
    "The site loads nothing from another host: no script, style, image, widget."
    widgets = {"application/javascript", "application/vnd.jupyter.widget-view+json"}
    return [f"cell {i} loads from a remote host: {hit[0][:80]}" for i, t in everything(nb) if (hit := REMOTE.search(words(t)))] + \
           [f"cell {i} has an output of {kind}, which needs scripts of a remote host"
            for i, o in outputs(nb) for kind in sorted(widgets & set(o.get("data", {})))]


def not_numbers(nb):
    "A table says what is missing in words or leaves the place empty."
    return [f"cell {i} shows a table with {hit[0]!r}" for i, o in outputs(nb) for kind in ("text/html", "text/markdown")
            if (hit := NOT_A_NUMBER.search("".join(o.get("data", {}).get(kind, ""))))]


def directive(text, name):
    "The value of `#| name: value`, a list over several lines too; None where it is absent or no YAML."
    lines = [line[2:].removeprefix(" ") for line in text.splitlines() if line.startswith("#|")]
    start = next((i for i, line in enumerate(lines) if line.startswith(f"{name}:")), None)
    if start is None:
        return None
    end = next((i for i in range(start + 1, len(lines)) if not re.match(r"\s|-", lines[i])), len(lines))
    try:
        return yaml.safe_load("\n".join(lines[start:end]))[name]
    except yaml.YAMLError:
        return None


def silent_figures(nb):
    "Every picture has a text for those who do not see it: `#| fig-alt:` in its cell, a list of them for several."
    faults = []
    for i, text, cell in cells(nb, "code"):
        pictures = sum(any(k.startswith("image/") for k in o.get("data", {})) for o in cell.get("outputs", []))
        alt = directive(text, "fig-alt")
        said = [a for a in (alt if isinstance(alt, list) else [alt]) if len(str(a or "").split()) >= 3]
        if len(said) < pictures:
            faults.append(f"cell {i} shows {pictures} figures with {len(said)} `#| fig-alt:` of three words or more")
    mute = re.compile(r"!\[\s*\]\([^)]*\)(?!\{[^}]*fig-alt=)|<img\b[^>]*>")
    images = [(i, hit) for i, t in everything(nb) for hit in mute.findall(words(t))]
    return faults + [f"cell {i} shows an image without alt text: {hit[:60]}" for i, hit in images
                     if not re.search(r"\balt\s*=\s*[\"'][^\"']+", hit)]


def fences(nb):
    "Divs open and close within a page; a closing fence is colons alone."
    depth = 0
    for i, text, _ in cells(nb, "markdown"):
        for line in re.findall(r"^\s*:::+(.*)$", prose(text), flags=re.M):
            depth += 1 if line.strip() else -1
            if depth < 0:
                return [f"cell {i} closes a ::: fence that is not open"]
    return [f"{depth} ::: fences stay open"] if depth else []


def references(nb):
    "Quarto resolves a reference within its page only; the text may come from Markdown cells and Markdown outputs."
    text = [prose(t) for _, t in texts(nb, "text/markdown")]
    labels = [a or b for t in text + [t for _, t, _ in cells(nb, "code")] for a, b in DEFINED.findall(t)]
    used = {r for t in text for r in REFERRED.findall(re.sub(r"`[^`\n]*`", "", t))}
    return [f"@{r} has no definition on this page" for r in sorted(used - set(labels))] + \
           [f"{{#{name}}} is defined {n} times" for name, n in sorted(Counter(labels).items()) if n > 1]


def title(nb):
    first = next((t for _, t, _ in cells(nb, "markdown")), "")
    return next((line[2:].strip() for line in first.splitlines() if line.startswith("# ")), "")


def heading(nb):
    "nbdev makes the first cell the title and drops what else stands in it."
    first = next((t for _, t, _ in cells(nb, "markdown")), "")
    lines = [line for line in first.splitlines() if line.strip()]
    if not lines or not lines[0].startswith("# "):
        return ["the first Markdown cell is not `# Title`"]
    lost = [line for line in lines[1:] if not re.match(r">\s|-\s.*:", line)]
    return [f"the site drops this line of the title cell: {lost[0][:60]!r}"] if lost else []


def result_title(nb):
    "A page of results is called after what it shows, in words."
    return [f"the title is made of keys: {title(nb)!r}"] if TOO_WORDY.search(title(nb)) else []


def template(nb):
    "papermill writes over the defaults of the one cell tagged `parameters`; an exporting directive would overwrite a module."
    tagged = [c for _, _, c in cells(nb, "code") if "parameters" in c.get("metadata", {}).get("tags", [])]
    front = "".join(t for _, t, _ in cells(nb, "raw"))
    return ([] if len(tagged) == 1 else [f"{len(tagged)} cells are tagged `parameters`, not one"]) + \
           ([] if re.search(r"^skip_exec:\s*true", front, re.M) else ["the front matter lacks `skip_exec: true`"])


def exporting(nb):
    return [f"cell {i} has an exporting directive" for i, t, _ in cells(nb, "code") if EXPORTS.search(t)]


CHECKS = (heading, long_cells, wide_lines, mixed_cells, undocumented, open_end, raw_references, bad_outputs, fences,
          remote, not_numbers, silent_figures)


def check_page(path, is_template=False, is_result=False):
    "All faults of one notebook as it stands in nbs/."
    nb = read(path)
    extra = [template] * is_template + [exporting] * (is_template or is_result) + [result_title] * is_result
    return [f for check in (*CHECKS, *extra) for f in check(nb)]


# One page as nbdev hands it to Quarto.

def documented(nb):
    "The names that a page documents, in order: nbdev writes a heading for each."
    made = ["".join(o.get("data", {}).get("text/markdown", "")) for i, o in outputs(nb) if "show_doc" in source(nb["cells"][i])]
    return re.findall(r"^### ([\w.]+)$", "\n".join(made), flags=re.M)


def collisions(nb):
    "Anchors know no case: a class, a function and a heading of one spelling share theirs, and links lead to the first."
    by_anchor, names = {}, {slug(name) for name in documented(nb)}
    for h in headings(nb):
        by_anchor.setdefault(slug(h), []).append(h)
    return [f"{' and '.join(same)} share the anchor #{anchor}" for anchor, same in by_anchor.items()
            if len(same) > 1 and anchor in names]


def headings(nb):
    return re.findall(r"^#{1,6}\s+(.*?)\s*$", "\n".join(prose(t) for _, t in texts(nb, "text/markdown")), flags=re.M)


def unfinished(nb):
    "What the site would show or load although `make_site.finish` is there to prevent it."
    return [f"cell {i} has an HTML output: Quarto adds remote scripts" for i, o in outputs(nb) if "text/html" in o.get("data", {})] + \
           [f"cell {i} documents `*args, **kwargs`, which says nothing" for i, o in outputs(nb)
            if re.search(r"\(\n\s*\*args, \*\*kwargs\n\)", "".join(o.get("data", {}).get("text/markdown", "")))]


def lost_lines(nb):
    "Quarto drops the line breaks of a `source` that is a string: in what it reads it is a list of lines."
    return [f"cell {i} has a string of several lines as its source" for i, c in enumerate(nb["cells"])
            if isinstance(c["source"], str) and "\n" in c["source"]]


def nested_links(nb):
    "A link inside a link is none, and private names have no place to link to."
    return [f"cell {i} has a link that nbdev spoilt: {hit[0][:80]}" for i, text in texts(nb, "text/markdown")
            for pattern in (make_site.NESTED_LINK, make_site.PRIVATE_LINK) if (hit := pattern.search(prose(text)))]


PROCESSED = (bad_outputs, fences, references, collisions, unfinished, lost_lines, nested_links)


def check_processed(path):
    "All faults of one notebook as nbdev hands it to Quarto."
    nb = read(path)
    return [f for check in PROCESSED for f in check(nb)]


def anchors(nb):
    "The places of a processed page that a link can name: headings, by pandoc's rule, and whatever has an id."
    text = "\n".join(prose(t) for _, t in everything(nb))
    ids = re.findall(r"\{#([\w.:-]+)|\bid=[\"']([^\"']+)", text) + DEFINED.findall("\n".join(t for _, t, _ in cells(nb, "code")))
    return {slug(h) for h in headings(nb)} | {a or b for a, b in ids}


def slug(heading):
    "pandoc's identifier of a heading."
    text = re.sub(r"\s*\{[^}]*\}\s*$", "", heading)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "").replace("*", "")
    text = re.sub(r"[^\w\s.-]", "", text).strip().lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", text)) or "section"


# The site: which pages, in which order, under which names.

def full_pattern(pattern, files, always):
    "What Quarto makes of a pattern: without a leading slash it means any folder, unless it is a plain name of what to include."
    any_folder = always or re.search(r"[*?\[\]{}()!+@|]", pattern)
    pattern = re.sub(r"^\./+", "/", pattern)
    if pattern.endswith("/") or any(f.startswith(pattern.strip("/") + "/") for f in files):
        pattern = pattern.rstrip("/") + "/**/*"
    return pattern[1:] if pattern.startswith("/") else f"**/{pattern}" if any_folder else pattern


def matches(pattern, name):
    "Does a full pattern match a path? `**/` is any folder or none."
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.fullmatch("".join(parts.get(p, re.escape(p)) for p in re.split(r"(\*\*/|\*\*|\*|\?)", pattern)), name) is not None


def selected(patterns, files, always=True):
    "The files that Quarto takes by a list of patterns, some with a `!`."
    plus = [full_pattern(p, files, always) for p in patterns if not p.startswith("!")]
    minus = [full_pattern(p[1:], files, True) for p in patterns if p.startswith("!")]
    return [f for f in files if any(matches(p, f) for p in plus) and not any(matches(p, f) for p in minus)]


def rendered(config, pages):
    "The pages that Quarto renders. Folders and files that begin with `_` or `.` are none of them."
    pages = [p for p in pages if not any(part.startswith(("_", ".")) for part in PurePosixPath(p).parts)]
    patterns = config["project"].get("render")
    return selected(patterns, pages, always=False) if patterns else pages


def entries(contents):
    "The targets of a sidebar, top to bottom."
    for item in contents:
        if isinstance(item, str):
            yield item
        else:
            yield from filter(None, [item.get("href")])
            yield from entries(item.get("contents", []))


def check_sidebar(nbs, config, pages):
    "Every target exists and is rendered, every rendered page is reached, and what is left out is left out by its whole name."
    named = [t for t in entries(config["website"]["sidebar"]["contents"]) if not t.startswith("http")]
    known, there = rendered(config, pages), [t for t in named if (nbs / t).exists()]
    by_name = {r[2:] for r in config["project"].get("render", []) if r.startswith("!/")}
    return [f"_quarto.yml: the sidebar names {t}, which does not exist" for t in named if t not in there] + \
           [f"_quarto.yml: the sidebar names {t} {n} times" for t, n in Counter(named).items() if n > 1] + \
           [f"_quarto.yml: Quarto does not render {t}, which the sidebar names" for t in there if t not in known] + \
           [f"{p}: not in the sidebar, nor left out by `render: [\"!/{p}\"]`" for p in known if p not in named] + \
           [f"{p}: not rendered, although no `\"!/{p}\"` says so" for p in pages if p not in [*known, *by_name, *there]]


def check_config(config, nbs):
    "The site loads nothing from another host, and has what its configuration names."
    html = config.get("format", {}).get("html", {})
    themes = html.get("theme", "default")
    local = [t for v in (themes.values() if isinstance(themes, dict) else [themes]) for t in (v if isinstance(v, list) else [v])]
    css = html.get("css", [])
    files = [t for t in [*local, *(css if isinstance(css, list) else [css]), config["website"].get("favicon")] if t and "." in t]
    return [f"_quarto.yml: the theme {t} may load fonts from a remote host: use `default` and own .scss" for t in local
            if t != "default" and not t.endswith(".scss")] + \
           ([] if html.get("html-math-method") == "mathml" else ["_quarto.yml: without `html-math-method: mathml` MathJax is remote"]) + \
           [f"_quarto.yml: {f} does not exist" for f in files if not (nbs / f).is_file()] + \
           [f"{f} loads from a remote host: {hit[0]}" for f in files if (nbs / f).is_file()
            and (hit := IMPORTED.search((nbs / f).read_text(encoding="utf-8")))] + \
           [f"_quarto.yml: {hit[0]} is remote" for hit in [REMOTE.search(yaml.safe_dump(config, width=10**6))] if hit]


def check_names(pages):
    "nbdev drops the number of a page: two pages must not become one file."
    names = Counter(map(make_site.html_name, pages))
    return [f"{', '.join(p for p in pages if make_site.html_name(p) == name)}: all become {name}" for name, n in names.items() if n > 1]


def check_titles(nbs, pages):
    "Readers tell pages apart by their titles; a result page does not keep its template's."
    by_title = {}
    for p in pages:
        by_title.setdefault(title(read(nbs / p)), []).append(p)
    return [f"{', '.join(same)}: all are called {name!r}" for name, same in by_title.items() if len(same) > 1]


def links(path):
    "(target, anchor) of every link of a page to another file of the project."
    for _, t in everything(read(path)):
        for a, b, c, d in LINK.findall(words(t)):
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


def check_links(nbs, path, config, pages, files=()):
    "Links from one page to another, nbdev's own among them, lead to a page that Quarto renders; those to data to a file it publishes."
    here, shown = path.parent.relative_to(nbs).as_posix(), rendered(config, pages)
    known, files = {make_site.html_name(p) for p in shown} | set(shown), sorted({*files} - {*shown})
    published = set(selected(config["project"].get("resources") or [], files))
    faults = []
    for target, _ in links(path):
        place = resolved(target, here)
        if not target or place in known or place.startswith(make_site.NOTEBOOKS + "/"):
            continue
        if place in pages:
            faults.append(f"a link is dead on the site, Quarto does not render its page: {target}")
        elif target.endswith((".html", ".ipynb")) or place not in files:
            faults.append(f"a link leads nowhere: {target}")
        elif place not in published:
            faults.append(f"a link leads to a file that is not in `resources:` {target}")
    return faults


def check_anchors(nbs, path, places):
    "The anchors of hand-written links stand on their pages; `places` has those of each, by page and by file of the site."
    here, own = path.parent.relative_to(nbs).as_posix(), path.relative_to(nbs).as_posix()
    wanted = [(resolved(t, here) if t else own, anchor) for t, anchor in links(path) if anchor]
    return [f"a link names a place that {page} does not have: #{anchor}" for page, anchor in wanted
            if page in places and anchor.lower() not in {a.lower() for a in places[page]}]


# The tree.

def tracked(root):
    "The files that are part of the project: git's, with new ones that it does not ignore."
    found = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    if found.returncode:
        names = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
        return [n for n in names if not re.search(r"(^|/)(\.\w|_proc|__pycache__)", n)]
    return [f for f in found.stdout.splitlines() if (root / f).is_file()]


def machine_paths(root):
    "Folders that only exist here: homes, the kernel's files, and where this checkout lies."
    own = {str(p) + "/" for p in (root.resolve(), root.resolve().parent)} - {"/", tempfile.gettempdir() + "/"}
    return re.compile(r"(?<![\w.$}])(?:/(?:root|home)/|/tmp/ipyker[n]el|" + "|".join(map(re.escape, sorted(own))) + ")")


def check_files(root, names):
    faults, pattern = [], machine_paths(root)
    for name in names:
        path = root / name
        if path.stat().st_size > BYTES:
            faults.append(f"{name}: {path.stat().st_size / 1e6:.1f} MB, more than 1 MB")
        elif path.suffix in TEXT and (hit := pattern.search(path.read_text(encoding="utf-8", errors="ignore"))):
            faults.append(f"{name}: a path of this machine: {hit[0]}")
    return faults


def check_api(root):
    "The index of names is what the package exports now: its page is executed again and compared."
    from execnb.shell import CaptureShell
    page = root / "nbs/api.ipynb"
    if not page.exists():
        return []
    shell, nb = CaptureShell(page.parent), read(page)
    kept = "".join("".join(o["data"]["text/markdown"]) for _, o in outputs(nb) if "text/markdown" in o.get("data", {}))
    made = [o for _, t, _ in cells(nb, "code") for o in shell.run(t)]
    now = "".join("".join(o["data"]["text/markdown"]) for o in made if "text/markdown" in o.get("data", {}))
    return [] if kept.strip() == now.strip() else ["api.ipynb: its table is not what the package exports: execute the page"]


def check(root, proc=make_site.process):
    "All faults of a checkout."
    nbs, files = root / "nbs", tracked(root)
    inside = [f.removeprefix("nbs/") for f in files if f.startswith("nbs/")]
    pages = sorted(f for f in inside if f.endswith(".ipynb"))
    config = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
    shown = rendered(config, pages)
    faults = check_config(config, nbs) + check_sidebar(nbs, config, pages) + check_names(shown) + check_titles(nbs, shown)
    faults += check_files(root, files) + make_boxes.faults(root) + check_api(root)
    for p in pages:
        faults += [f"{p}: {f}" for f in check_page(nbs / p, p in TEMPLATES, p.startswith("results/"))]
    try:
        done = proc()
    except Exception as e:
        return faults + [f"nbdev cannot process a page: {e}"]
    there = [p for p in shown if (done / p).exists()]
    places = {name: anchors(read(done / p)) for p in there for name in (p, make_site.html_name(p))}
    for p in there:
        found = check_processed(done / p) + check_links(done, done / p, config, pages, inside) + check_anchors(nbs, nbs / p, places)
        faults += [f"{p}: {f}" for f in found]
    print(f"{len(pages)} pages, {len(files)} files checked")
    return faults + [f"{p}: nbdev did not process it" for p in shown if p not in there]


def main(args):
    root = Path(__file__).resolve().parent.parent
    faults = check_page(args[1], is_result=True) if args[:1] == ["--page"] else check(root)
    if faults:
        sys.exit("\n".join(dict.fromkeys(faults)))


if __name__ == "__main__":
    main(sys.argv[1:])
