"""Names of items, a task (`rte`) or one of its templates (`rte_0`; `rte_-1` is the bare input), and of folders."""

import re
import unicodedata
from collections.abc import Collection

from src.cli import InputError

SPLITS = ("valid", "test")  # of results
MAX_NAME = 100  # bytes; leaves room for the suffixes within the 255 of a file name
RULE = f"letters, digits, '_', '-' and '.', not beginning with '-' or '.', at most {MAX_NAME} bytes"


def natural_order(name: str) -> list:
    """Sort key under which rte_-1 comes before rte_0, and rte_2 before rte_10."""
    pieces = re.split(r"((?<=_)-\d+|\d+)", name)  # every other piece is a number
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)]


def task_of_template(item: str, tasks: Collection[str] = ()) -> str | None:
    """The task of an item that is spelled like a template: `rte` of `rte_0`; None of `rte`, and of one of `tasks`."""
    match = re.fullmatch(r"(.+)_-?\d+", item)
    return match[1] if match and item not in tasks else None


def _allowed(sign: str) -> bool:
    category = unicodedata.category(sign)
    return sign in "_-." or category[0] in "LM" or category == "Nd"  # marks: the vowel signs of many scripts


def is_name(name: str) -> bool:
    """Whether `name` may name a task, a template, a set of subsets, a run or a folder of results: RULE.

    All of these stand in one list separated by spaces, in CSV cells, in file names and on command lines.
    """
    return all(map(_allowed, name)) and 0 < len(name.encode()) <= MAX_NAME and not name.startswith(("-", "."))


def check_name(what: str, name: str) -> None:
    """Raise InputError, beginning with `what` (a flag, a file), where `name` is none."""
    if not is_name(name):
        raise InputError(f"{what} {name!r} must be a plain file name: {RULE}")


def plain_name(text: str, longest: int = MAX_NAME) -> str:
    """`text` made a name: `_` for each run of signs that none has, cut to `longest` bytes."""
    name = re.sub("\0+", "_", "".join(sign if _allowed(sign) else "\0" for sign in text).strip("\0")).lstrip("-.")
    return name.encode()[:longest].decode(errors="ignore") or "_"
