"""The one exception for bad input, the nearest-name hint that goes with it, warnings, exit codes.

Lies below every other module, so that each of them may raise it and the scripts
catch one type: message to standard error, exit code 2, no traceback.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from src.process import die_with_parent


class OneLineErrors(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without the page of usage that so many flags make."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


class InputError(ValueError):
    """Bad input from the user. The message names the flag or file, the value and what is allowed."""


def did_you_mean(name: str, allowed: Iterable[str], shown: int = 12) -> str:
    """Return a hint such as `did you mean 'rte'? (allowed: cb, mnli, rte)` for an unknown `name`."""
    allowed = sorted(map(str, allowed))
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    listed = ", ".join(allowed[:shown]) + (f", ... {len(allowed)} in all" if len(allowed) > shown else "")
    return (f"did you mean '{near[0]}'? " if near else "") + f"(allowed: {listed or 'none'})"


def warn(message: str) -> None:
    """Print one warning line to standard error (under torchrun: of the first process only)."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr)


def run_as_script(main: Callable[[], int]) -> NoReturn:
    """Run `main` and exit with its code: bad input gives one line on standard error and 2, Ctrl-C gives 130."""
    die_with_parent()
    try:
        code = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        code = 130
    raise SystemExit(code)
