"""The true optimum of small clusterings and plans, for tests and benches."""

import itertools
from collections.abc import Iterator

import numpy as np


def clusterings(n: int, k: int) -> np.ndarray:
    """All ways to put n items into k clusters, as labels (number, n) in canonical numbering."""
    rows = np.zeros((1, 1), np.int8)
    for _ in range(n - 1):
        used = rows.max(1) + 1
        rows = np.concatenate([np.column_stack([rows[used >= c], np.full((used >= c).sum(), c, np.int8)])
                               for c in range(k)])
    return rows[rows.max(1) == k - 1]


def exhaustive(S: np.ndarray, k: int) -> np.ndarray:
    """The densest clustering into k clusters, by trying all; there are 115,975 of 10 items."""
    rows = clusterings(len(S), k)
    total = np.zeros(len(rows))
    for c in range(k):
        H = (rows == c).astype(float)
        total += ((H @ S) * H).sum(1) / H.sum(1)
    return rows[total.argmax()].astype(int)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """All partitions of the items; there are 877 of 7."""
    if not items:
        yield []
        return
    first, *rest = items
    for others in itertools.chain.from_iterable(itertools.combinations(rest, k) for k in range(len(items))):
        for found in partitions([item for item in rest if item not in others]):
            yield [[first, *others], *found]


def best_total(of_items: np.ndarray, budget: int | None, overlap: bool) -> float:
    """The largest sum of a plan of at most `budget` subsets, by trying all partitions of who is served together.

    of_items (2^n, n): what each item gains by each subset, a row r for the subset of its bits. With overlap, whoever is
    served together may be served by any subset that holds them.
    """
    n, values = of_items.shape[1], {}
    for block in range(1, len(of_items)):
        members = [i for i in range(n) if block >> i & 1]
        around = [s for s in range(len(of_items)) if s & block == block] if overlap else [block]
        values[block] = max(of_items[s, members].sum() for s in around)
    return max(sum(values[sum(1 << i for i in block)] for block in found) for found in partitions(list(range(n)))
               if len(found) <= (budget or n))
