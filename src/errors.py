"""The one exception for bad input, and the nearest-name hint that goes with it.

Lies below every other module, so that each of them may raise it and the scripts
catch one type: message to standard error, exit code 2, no traceback.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from the user. The message names the flag or file, the value and what is allowed."""


def did_you_mean(name: str, allowed: Iterable[str], shown: int = 12) -> str:
    """Return a hint such as `did you mean 'rte'? (allowed: cb, mnli, rte)` for an unknown `name`."""
    allowed = sorted(map(str, allowed))
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    listed = ", ".join(allowed[:shown]) + (f", ... {len(allowed)} in all" if len(allowed) > shown else "")
    return (f"did you mean '{near[0]}'? " if near else "") + f"(allowed: {listed or 'none'})"
