"""Faults: damaged files, processes that are killed, inputs that cannot work.

Each attempt has one of four outcomes, and two of them are faults."""

from collections import Counter
from collections.abc import Callable

from gpvae.checks import InputError

CLEAR, HARMLESS, TRACEBACK, SILENT = OUTCOMES = ("clear error", "harmless", "traceback", "silently wrong")
FAULTS = (TRACEBACK, SILENT)
SHOWN = 300  # faults

def outcome(call: Callable, is_right: Callable = lambda result: False) -> tuple[str, str]:
    "The outcome of a call that should be refused, and its message; `is_right` knows a sound result."
    try:
        result = call()
    except InputError as e:
        return (CLEAR if "\n" not in str(e) and str(e).strip() else TRACEBACK), str(e)
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            raise
        return TRACEBACK, " ".join(f"{type(e).__name__}: {e}".split())[:150]
    return (HARMLESS, "") if is_right(result) else (SILENT, " ".join(repr(result).split())[:90])

class Tally:
    "Outcomes by kind."

    def __init__(self):
        self.counts, self.faults = {}, []

    def add(self, kind: str, name: str, found: tuple[str, str]) -> None:
        self.counts.setdefault(kind, Counter())[found[0]] += 1
        if found[0] in FAULTS:
            self.faults.append(f"{found[0]}: {kind}, {name}: {found[1]}")

    @property
    def total(self) -> int:
        return sum(sum(c.values()) for c in self.counts.values())

    def report(self, what: str) -> int:
        "Print the table and what is at fault; the exit status."
        kinds = [*sorted(self.counts), "all"]
        counts = self.counts | {"all": sum(self.counts.values(), Counter())}
        width = max(map(len, kinds))
        print(f"{what:{width}}", *(f"{o:>14}" for o in ("tried", *OUTCOMES)))
        for kind in kinds:
            print(f"{kind:{width}}", f"{sum(counts[kind].values()):14}",
                  *(f"{counts[kind][o]:14}" for o in OUTCOMES))
        for fault in self.faults[:SHOWN]:
            print(fault)
        if len(self.faults) > SHOWN:
            print(f"and {len(self.faults) - SHOWN} more")
        return 1 if self.faults else 0
