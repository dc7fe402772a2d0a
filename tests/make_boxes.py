"Write the box that opens each method page, from rows of results: `make_boxes.py`; or only compare them: `make_boxes.py --check`."
import re
import sys
from pathlib import Path

import quick # noqa: F401
import nbformat

ROOT = Path(__file__).resolve().parent.parent
FIRST = '::: {.callout-note title="At a glance"}'
PAGE = re.compile(r"^(40|5[0-7])_.*\.ipynb$")


def pages(nbs):
    "The pages of methods, in their order."
    return sorted(p for p in nbs.glob("*.ipynb") if PAGE.match(p.name))


def stands_for(page, methods, shown):
    "The method of a page that its box tells of: the one named as its family, else one that the result page shows, else the first."
    own = [name for name, method in methods.items() if method.page == page.name]
    return next(iter([n for n in own if n == methods[n].family] + [n for n in own if n in shown] + own), None)


def box(method, method_box):
    "The text of the box of a method."
    text = method_box(method).strip()
    return text if text.startswith(FIRST) and text.endswith(":::") else f"{FIRST}\n{text}\n:::"


def place(nb):
    "(index of the box's cell, is it there?): second of all, after the title, where it is missing."
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown" and cell.source.lstrip().startswith(FIRST):
            return i, True
    title = next(i for i, cell in enumerate(nb.cells) if cell.cell_type == "markdown")
    return title + 1, False


def faults(root=ROOT, *package):
    "What is missing or not what the rows say."
    found = []
    for page, text in boxes(root, *package):
        nb = nbformat.read(page, as_version=4)
        i, there = place(nb)
        if not there:
            found.append(f"{page.name}: no box `{FIRST}`: run tests/make_boxes.py")
        elif nb.cells[i].source.strip() != text:
            found.append(f"{page.name}: its box is not what the rows say: run tests/make_boxes.py")
    return found


def boxes(root, methods=None, method_box=None, shown=()):
    "(page, text) of each page of a method; the package, which makes the text, is only asked where there are such pages."
    there = pages(root / "nbs")
    if there and methods is None:
        from gpvae.study.catalogue import page as page_of
        from gpvae.study.spec import METHODS as methods
        from gpvae.study.tables import method_box
        shown = page_of("static_mnist", "cpu").methods
    named = [(page, stands_for(page, methods, shown)) for page in there]
    return [(page, box(method, method_box)) for page, method in named if method is not None]


def write(root=ROOT, *package):
    "Put the boxes into their pages; nothing else of a page changes."
    for page, text in boxes(root, *package):
        nb = nbformat.read(page, as_version=4)
        i, there = place(nb)
        if there:
            nb.cells[i].source = text
        else:
            nb.cells.insert(i, nbformat.v4.new_markdown_cell(text, id=f"box-{re.sub('[^a-z0-9]+', '-', page.stem)}"))
        page.write_text(nbformat.writes(nb).rstrip("\n") + "\n", encoding="utf-8")


def main(check):
    if not check:
        write()
    elif found := faults():
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
