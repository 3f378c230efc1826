"""Names of items: a task (`rte`) or one of its templates (`rte_0`; `rte_-1` is the bare input)."""

import re


def natural_order(name: str) -> list:
    """Sort key under which rte_-1 comes before rte_0, and rte_2 before rte_10."""
    pieces = re.split(r"((?<=_)-\d+|\d+)", name)  # every other piece is a number
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)]


def task_of_template(item: str) -> str | None:
    """The task of an item that is spelled like a template: `rte` of `rte_0`; None of `rte`."""
    match = re.fullmatch(r"(.+)_-?\d+", item)
    return match[1] if match else None
