"""Names of items, a task (`rte`) or one of its templates (`rte_0`; `rte_-1` is the bare input), and of folders."""

import re
from pathlib import Path

from src.cli import InputError

MAX_NAME = 100  # bytes; leaves room for the suffixes within the 255 of a file name


def natural_order(name: str) -> list:
    """Sort key under which rte_-1 comes before rte_0, and rte_2 before rte_10."""
    pieces = re.split(r"((?<=_)-\d+|\d+)", name)  # every other piece is a number
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)]


def task_of_template(item: str) -> str | None:
    """The task of an item that is spelled like a template: `rte` of `rte_0`; None of `rte`."""
    match = re.fullmatch(r"(.+)_-?\d+", item)
    return match[1] if match else None


def check_name(flag: str, name: str) -> None:
    """Raise InputError where `name` cannot be the name of a folder and files of its own."""
    if not name or name != Path(name).name or name.startswith(".") or len(name.encode()) > MAX_NAME:
        raise InputError(f"{flag} '{name}' must be a plain file name of at most {MAX_NAME} bytes, without '/'")
