"""How annotations are checked: an int is a float, as PEP 484 has it; of every function the first calls in
each test, since loops of thousands of steps would spend most of their time on shapes."""
import functools
import inspect
import sys
from collections import Counter

from beartype import BeartypeConf, beartype

CALLS = 20
calls, trusted = Counter(), []
beartyped = beartype(conf=BeartypeConf(is_pep484_tower=True))

def checked(annotated):
    "The check of a call; jaxtyping has one for the arguments, and one for arguments and result."
    if not inspect.isfunction(annotated):
        return beartyped(annotated)
    name = annotated.__module__, annotated.__qualname__
    check = functools.cache(lambda: beartyped(annotated)) # made at the first call: most functions have none
    @functools.wraps(annotated)
    def counted(*args, **kwargs):
        calls[name] += 1
        if calls[name] == 2 * CALLS:
            trust(*name)
        return check()(*args, **kwargs)
    return counted

def trust(module, qualname):
    "Check a function no more in this test; those within a function stay checked."
    found = sys.modules[module]
    for part in qualname.split("."):
        found = vars(found).get(part)
        if found is None:
            return
        found = getattr(found, "fget", None) or getattr(found, "__func__", found)
    function = inspect.unwrap(found)
    function.__no_type_check__ = True
    trusted.append(function)

def begin():
    "Check all functions again."
    calls.clear()
    while trusted:
        vars(trusted.pop()).pop("__no_type_check__", None)
