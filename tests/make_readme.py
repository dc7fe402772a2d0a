"""Write README.md and its picture from nbs/index.ipynb, without Quarto; or only compare them: `make_readme.py
--check`."""
import base64
import re
import sys
from pathlib import Path

import quick # noqa: F401
import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "nbs" / "portrait.png"
TEXT = ("text/markdown", "text/plain")
HIDDEN = re.compile(r"^#\|\s*(hide|export|exporti|default_exp)\b|^#\|\s*include:\s*false", re.M)

def shown(cell):
    "The cell as a reader of plain text sees it, or None."
    source = cell.source.strip()
    if cell.cell_type == "raw" or (cell.cell_type == "code" and HIDDEN.search(source)):
        return None
    if cell.cell_type == "markdown":
        cell.source = local_links(source)
        return cell
    cell.source = ("" if re.search(r"^#\|\s*echo:\s*false", source, re.M)
                   else re.sub(r"^#\|.*\n?", "", source, flags=re.M))
    drawn = [o for o in cell.outputs if "image/png" in o.get("data", {})]
    if drawn:
        return picture(source)
    cell.outputs = [o for o in cell.outputs if plain(o)]
    return cell if cell.source or cell.outputs else None

def picture(source):
    "A cell that draws, as an image with its alternative text and its caption."
    alt, caption = (re.search(rf'^#\| fig-{kind}: "(.*)"$', source, re.M)[1] for kind in ("alt", "cap"))
    return nbformat.v4.new_markdown_cell(f"![{alt}](nbs/{PICTURE.name})\n\n*{caption}*")

def drawn(path):
    "The pixels of the one picture of a notebook, as a PNG file."
    outputs = [o for c in nbformat.read(path, as_version=4).cells for o in c.get("outputs", [])]
    found = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    if len(found) != 1:
        sys.exit(f"{path.name} has {len(found)} pictures: README.md shows one")
    return base64.b64decode(found[0])

def plain(output):
    "Keep one text form of an output; a picture, and what only names one, has none."
    if output.output_type == "stream":
        return output.name == "stdout"
    if output.output_type == "error":
        return True
    data = output.get("data", {})
    if any(kind.startswith("image/") for kind in data):
        return False
    best = next((kind for kind in TEXT if kind in data), None)
    output.data = {best: local_links("".join(data[best]))} if best else {}
    return best is not None

def local_links(source):
    "Links between pages start at nbs/, for a reader of README.md at the top of the tree."
    return re.sub(r"\]\((?!https?:|#|mailto:|\.\./)([^)]+)\)", r"](nbs/\1)", source).replace("](../", "](")

def readme(path):
    "The Markdown text of a notebook."
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in map(shown, nb.cells) if c is not None]
    nb.metadata.language_info = {"name": "python"}
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    text = re.sub(r"^```python\n\s*```$", "", text, flags=re.M) # a cell of which only the output is shown
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"

def main(check):
    page, path = ROOT / "nbs/index.ipynb", ROOT / "README.md"
    made = {path: readme(page).encode(), PICTURE: drawn(page)}
    if not check:
        for file, content in made.items():
            file.write_bytes(content)
    stale = [file.name for file, content in made.items() if not file.exists() or file.read_bytes() != content]
    if stale:
        sys.exit(f"{', '.join(stale)}: not what nbs/index.ipynb says, run `make readme`")

if __name__ == "__main__":
    main("--check" in sys.argv[1:])
