"""To be imported before nbformat: it then leaves out a grammar of addresses that takes three seconds to
compile, and that no notebook needs."""
import sys

sys.modules.setdefault(
    "rfc3987_syntax", None
)  # an optional part of jsonschema, to which it is not installed now
