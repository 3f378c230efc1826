"""Names of items, a task (`rte`) or one of its templates (`rte_0`; `rte_-1` is the bare input), and of folders."""

import re
import unicodedata

from src.cli import InputError

SPLITS = ("valid", "test")  # of results
MAX_NAME = 100  # bytes; leaves room for the suffixes within the 255 of a file name


def natural_order(name: str) -> list:
    """Sort key under which rte_-1 comes before rte_0, and rte_2 before rte_10."""
    pieces = re.split(r"((?<=_)-\d+|\d+)", name)  # every other piece is a number
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)]


def task_of_template(item: str) -> str | None:
    """The task of an item that is spelled like a template: `rte` of `rte_0`; None of `rte`."""
    match = re.fullmatch(r"(.+)_-?\d+", item)
    return match[1] if match else None


def _is_plain(sign: str) -> bool:
    return sign in "_-." or unicodedata.category(sign)[0] in "LMN"  # letters of any script, their marks, digits


def check_name(where: str, name: str) -> None:
    """Raise InputError, beginning with `where`, where `name` cannot be that of an item, or of a folder and files."""
    if not name or name[0] in "-." or len(name.encode(errors="replace")) > MAX_NAME or not all(map(_is_plain, name)):
        raise InputError(f"{where} '{name}' must be a plain file name: letters, digits, '_', '-' and '.', not first "
                         f"'-' or '.', at most {MAX_NAME} bytes")


def plain(text: str) -> str:
    """`text` with '_' for each sign that no name may hold."""
    return "".join(sign if _is_plain(sign) else "_" for sign in text)
