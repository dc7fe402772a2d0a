"""The style of the exported modules, and the two floors of the house: the library knows nothing of `gpvae.study`, nor do the pages of the methods.

What is counted is code: the cells that pages export, without the lines that nbdev writes around them."""
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WIDTH, BLOCK_WIDTH = 110, 90 # characters: of any line; of a line that holds a for, while, with or try and its body
NAMES, QUESTIONS = 300, 3    # at most: names exported by all modules; hasattr and getattr of encoders
METHOD_PAGES = re.compile(r"^(4\d|5[0-6])_\w+\.ipynb$")
BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try)
COMPOUND = (*BLOCKS, ast.If, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

class Module(NamedTuple):
    name: str   # of the file, from the checkout on
    source: str # all of it

    @property
    def first(self): # number of the first line that a page wrote
        lines = self.source.splitlines()
        return next((i for i, line in enumerate(lines, 1) if line.startswith("# %% ../")), 1)

    @property
    def tree(self): return ast.parse(self.source)

def modules(root):
    "The exported modules of a checkout."
    paths = sorted(p for p in (root / "gpvae").rglob("*.py") if p.name not in ("_modidx.py", "__init__.py"))
    return [Module(p.relative_to(root).as_posix(), p.read_text(encoding="utf-8")) for p in paths]

# Each rule lists the faults of one module.

def long_lines(m):
    "Lines of code are at most 110 characters long."
    lines = list(enumerate(m.source.splitlines(), 1))[m.first - 1:]
    return [f"{m.name}:{i} has {len(line)} characters, more than {WIDTH}" for i, line in lines if len(line) > WIDTH and not line.startswith("# %% ../")]

def joined_statements(m):
    "No semicolon joins two statements."
    tokens = tokenize.generate_tokens(io.StringIO(m.source).readline)
    return [f"{m.name}:{t.start[0]} joins statements by a semicolon" for t in tokens if t.type == tokenize.OP and t.string == ";"]

def bodies(node):
    "The blocks of a compound statement: what begins each, and its first statement."
    yield node, node.body[0]
    for block in (getattr(node, "orelse", []), getattr(node, "finalbody", [])):
        if block and not (isinstance(node, ast.If) and isinstance(block[0], ast.If)): yield node, block[0]
    for handler in getattr(node, "handlers", []): yield handler, handler.body[0]

def crowded_bodies(m):
    """`if x: return y`, `def f(x): return y` and the like may stand on one line. A body on the line of its head must end on that line;
    where the head is a for, while, with or try, that line has at most 90 characters; a class has lines of its own."""
    lines, faults = m.source.splitlines(), []
    for node in ast.walk(m.tree):
        for head, body in bodies(node) if isinstance(node, COMPOUND) else ():
            line = lines[body.lineno - 1]
            if not line[:body.col_offset].strip(): continue # a line of its own
            where = f"{m.name}:{body.lineno}"
            if isinstance(node, ast.ClassDef): faults.append(f"{where} has the body of a class on the line of its head")
            elif body.end_lineno > body.lineno: faults.append(f"{where} begins a body on the line of its head and ends it elsewhere")
            elif isinstance(node, BLOCKS) and len(line) > BLOCK_WIDTH:
                faults.append(f"{where} has a loop, with or try and its body in {len(line)} characters, more than {BLOCK_WIDTH}")
    return sorted(set(faults))

def exported(m):
    "The names in `__all__`."
    found = [n.value for n in m.tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    return [name for value in found for name in ast.literal_eval(value)]

def questions(m):
    "Where an encoder is asked what it has, in the place of calling it."
    calls = [n for n in ast.walk(m.tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") in ("hasattr", "getattr") and n.args]
    return [f"{m.name}:{n.lineno} asks {ast.unparse(n)}" for n in calls if re.search(r"\bencoder\b|^e$", ast.unparse(n.args[0]))]

def imports(m):
    "Every module that is imported anywhere in the source, by its full name."
    package = m.name.removesuffix(".py").split("/")[:-1]
    for n in ast.walk(m.tree):
        if isinstance(n, ast.Import): yield from ((n.lineno, a.name) for a in n.names)
        if isinstance(n, ast.ImportFrom):
            base = package[:len(package) - n.level + 1] if n.level else []
            names = [".".join([*base, *filter(None, [n.module])])]
            yield from ((n.lineno, name) for name in names + [f"{names[0]}.{a.name}" for a in n.names])

def is_study(name): return name == "gpvae.study" or name.startswith("gpvae.study.")

def upward_imports(m):
    "The library imports nothing of the study."
    if m.name.startswith("gpvae/study/"): return []
    return sorted({f"{m.name}:{i} imports {name}, but the library knows no study" for i, name in imports(m) if is_study(name)})

def upward_pages(root):
    "The pages of the methods do not mention the study."
    faults = []
    for path in sorted(p for p in (root / "nbs").glob("*.ipynb") if METHOD_PAGES.match(p.name)):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        faults += [f"nbs/{path.name}: cell {i} mentions gpvae.study" for i, c in enumerate(cells) if "gpvae.study" in "".join(c["source"])]
    return faults

def loaded_study(root):
    "What the import of every module of the library brings of the study."
    code = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
for path in sorted((root / "gpvae").rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    if "study" not in parts and parts[-1] not in ("__init__", "_modidx"): importlib.import_module(".".join(parts))
print(*sorted(name for name in sys.modules if name.startswith("gpvae.study")))
"""
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, cwd=root)
    if done.returncode: return [f"the library cannot be imported: {done.stderr.strip().splitlines()[-1]}"]
    return [f"the import of the library brings {name}" for name in done.stdout.split()]

RULES = (long_lines, joined_statements, crowded_bodies, upward_imports)

def check(root, load=True):
    "All faults of a checkout, and its sizes in words."
    found = modules(root)
    faults = [f for m in found for rule in RULES for f in rule(m)] + upward_pages(root) + (loaded_study(root) if load else [])
    names, asked = sum(len(exported(m)) for m in found), [q for m in found for q in questions(m)]
    if names > NAMES: faults.append(f"the modules export {names} names, more than {NAMES}: give an underscore to what only its own module uses")
    if len(asked) > QUESTIONS: faults += [*asked, f"encoders are asked {len(asked)} times, more than {QUESTIONS}"]
    lines = sum(len(m.source.splitlines()) - m.first for m in found)
    return faults, f"{len(found)} modules: {lines} lines of code, {names} exported names (at most {NAMES}), {len(asked)} questions to encoders (at most {QUESTIONS})"

def main():
    faults, sizes = check(ROOT)
    print(sizes)
    if faults: sys.exit("\n".join(faults))

if __name__ == "__main__": main()
