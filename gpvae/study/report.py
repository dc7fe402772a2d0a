"""A template notebook and a study become a notebook with results and an HTML page that needs no network.

Templates use `section`, `table` and `note`: what has no content leaves nothing on the page, no heading."""
import html
import importlib.util
import os
import re
import warnings
from pathlib import Path
from string import Template

import pandas as pd

import gpvae
from gpvae.checks import InputError, require
from gpvae.files import open_folder, write_atomically
from gpvae.study import OWN_PACKAGE
from gpvae.study.store import Store
from gpvae.study.studies import Study

TEMPLATES = Path(gpvae.__file__).absolute().parents[1] / "nbs"


def section(prose: str,       # Markdown, its heading first
            *contents: object  # what is displayed below it; None: nothing
            ) -> None:
    "Show prose and contents; nothing where no content is there."
    shown = [content for content in contents if content is not None]
    if shown:
        from IPython.display import Markdown, display
        display(*([Markdown(prose.strip())] if prose else []), *shown)


def table(frame: pd.DataFrame,
          words: bool = False,      # are its cells sentences, which may break?
          folded: str | None = None  # a summary, behind which the table is folded
          ) -> object:              # HTML; None for an empty table
    "A table as one block with one header line; `**text**` is bold."
    if not len(frame):
        return None
    header = [frame.index.name or "", *frame.columns]
    lines = ["<tr>" + "".join(f"<th>{html.escape(str(name))}</th>" for name in header) + "</tr>"]
    for label, cells in zip(frame.index, frame.to_numpy(object)):
        cells = "".join(f"<td>{cell_html(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{cell_html(label)}</th>{cells}</tr>')
    look = "words" if words else "dataframe"
    body = "\n".join(lines[1:])
    text = f'<table class="{look}"><thead>{lines[0]}</thead>\n<tbody>{body}</tbody></table>'
    if folded:
        text = f"<details><summary>{html.escape(folded)}</summary>\n{text}\n</details>"
    from IPython.display import HTML
    return HTML(text)


def cell_html(value: object) -> str:
    "A cell of a table as HTML."
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(str(value)))


def note(text: str) -> object:  # Markdown
    "A block quote; None for no text."
    from IPython.display import Markdown
    return Markdown(f"> {text}") if text else None


def check_rendering(template: str = "reproduce") -> None:
    "Raise `InputError` where a page could not be rendered: to be called before anything is trained."
    for name in ("papermill", "nbconvert", "ipykernel"):
        require(importlib.util.find_spec(name) is not None,
                f"{name} is not installed: pip install 'gpvae[dev]' brings what rendering needs")
    path = TEMPLATES / f"{template}.ipynb"
    require(path.exists(), f"the template {path} is missing: pages are rendered from a clone of the package")


def page_name(study: Study, template: str = "reproduce") -> str:
    "The file of a page, without its suffix."
    require(re.fullmatch(r"\w[\w.+ -]*", study.name) is not None,
            f"study {study.name!r} cannot be the name of a file: use letters, digits, _, - and .")
    return study.name if template in ("reproduce", study.name) else f"{template}_{study.name}"


def render(study: Study, store: Store,
           out: Path | None = None,     # folder of the page; None: that of the store
           template: str = "reproduce"  # its name
           ) -> Path:                   # the HTML page; its notebook lies beside it
    "Execute a template on what a store holds of a study: the same rows give the same page."
    check_rendering(template)
    import nbformat
    import papermill
    out, name = Path(out or store.folder).absolute(), page_name(study, template)
    open_folder(out, "pass another one by --out")
    write_atomically(out / f"{study.name}.json", study.write)
    values = {"study": f"{study.name}.json"}
    if out != store.folder:
        values["results"] = os.path.relpath(store.folder, out)
    before = {key: os.environ.get(key) for key in ("PYTHONSAFEPATH", "PYDEVD_DISABLE_FILE_VALIDATION")}
    os.environ |= {"PYTHONSAFEPATH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            notebook = papermill.execute_notebook(
                str(TEMPLATES / f"{template}.ipynb"), None, values, kernel_name="python3", cwd=str(out),
                progress_bar=False, log_output=False,
                extra_arguments=["--InteractiveShellApp.ignore_cwd=True", "--log-level=ERROR",
                                 f"--InteractiveShellApp.exec_lines={OWN_PACKAGE}"])
    except papermill.PapermillExecutionError as e:
        if e.ename != "InputError":
            raise
        raise InputError(e.evalue) from e
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    title = page_title(study, notebook, template)
    clean(notebook, title, out)
    text = nbformat.writes(notebook) + "\n"
    write_atomically(out / f"{name}.ipynb", lambda draft: draft.write_text(text, encoding="utf-8"))
    page = to_html(notebook, title)
    write_atomically(out / f"{name}.html", lambda draft: draft.write_text(page, encoding="utf-8"))
    return out / f"{name}.html"


def page_title(study: Study, notebook, template: str) -> str:  # a notebook of nbformat
    "The title of a study, which begins with the words of the template where that is about something else."
    if template in ("reproduce", study.name):
        return study.title
    first = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
    heading, about = first.source.partition("\n")[0][2:], study.title.partition("Likelihoods ")[2]
    return f"{heading} {about}" if about else f"{heading}: {study.title}"


def clean(notebook, title: str, out: Path) -> None:  # of nbformat, changed in place
    "Give a page its title, and take from it what changes at every execution, and dead links."
    heading = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
    heading.source = re.sub(r"\A# .*", lambda match: f"# {title}", heading.source)
    notebook.metadata = {k: v for k, v in notebook.metadata.items() if k == "kernelspec"}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cell.id, cell.source = "injected", "#| echo: false\n" + cell.source
            cell.metadata = {"tags": [*tags, "hide-input"], "jupyter": {"source_hidden": True}}
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter")}
        if cell.cell_type == "markdown":
            cell.source = drop_dead_links(cell.source, out)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = None
                if output.output_type != "stream":
                    output["metadata"] = {}
                data = output.get("data", {})
                if "text/markdown" in data:
                    data["text/markdown"] = drop_dead_links(data["text/markdown"], out)


def drop_dead_links(text: str, out: Path) -> str:
    "A link to a notebook that does not exist becomes its text."
    def keep(match):
        return match[0] if (out / match[2].partition("#")[0]).exists() else match[1]
    return re.sub(r"\[([^]]*)\]\(([^)\s]+\.ipynb[^)\s]*)\)", keep, text)


def to_html(notebook, title: str) -> str:
    "A page for the browser: prose and outputs, pictures embedded, no scripts."
    from nbconvert import HTMLExporter
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True,
                            exclude_raw=True)
    body, _ = exporter.from_notebook_node(notebook)
    styles = TEMPLATES / "styles.css"
    look = styles.read_text("utf-8") if styles.exists() else ""
    page = Template(Path(__file__).with_name("page.html").read_text("utf-8"))
    return page.substitute(title=html.escape(title), styles=look, body=body)
