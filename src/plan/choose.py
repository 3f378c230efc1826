"""Choose the subsets of a plan: the largest weighted sum of gains, each item served by one of them.

Up to 16 items exactly, by dynamic programming over subsets (with overlap up to 10); beyond, by a local search of moves,
merges and swaps with kicks. A subset that may not be used is worth IMPOSSIBLE.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from src.cli import InputError
from src.gains import Gains
from src.plan.predict import Process

MOST_EXACT, MOST_EXACT_OVERLAP = 16, 10  # items
IMPOSSIBLE = -1e9
BLOCK_BITS = 9  # of the convolution that is done at once: 3 ** 9 numbers
KICKS = 30
OPTIMISM = 2.0  # standard deviations


@dataclass
class Plan:
    """subsets (k, n) bool; served (n,): which of them serves each item; exact: no better one exists by these gains."""

    subsets: np.ndarray
    served: np.ndarray
    exact: bool = False

    @property
    def of_item(self) -> np.ndarray:
        """(n, n) bool: the subset that serves each item."""
        return self.subsets[self.served]


def partition(blocks: Iterable[np.ndarray], exact: bool = False) -> Plan:
    """The plan in which every item is served by the one block (n,) bool that holds it."""
    subsets = np.array(sorted(blocks, key=lambda block: int(np.argmax(block))))
    return Plan(subsets, subsets.argmax(0), exact)


class Worth:
    """What subsets are worth to a plan: measured gains as they are, then estimated, then predicted.

    weights (n,) of the items; excluded: keys of subsets that cannot be trained.
    """

    def __init__(self, gains: Gains, process: Process, weights: np.ndarray, excluded: Iterable[bytes] = ()):
        self.gains, self.process, self.weights, self.excluded = gains, process, weights, frozenset(excluded)

    def with_values(self, values: np.ndarray, refit: bool = True) -> "Worth":
        """The same with other gains (m, n) of the known subsets; refit: the predictions follow from them, too."""
        process = self.process.with_values(self.gains.members, values) if refit else self.process
        return Worth(replace(self.gains, values=values), process, self.weights, self.excluded)

    def of_items(self, S: np.ndarray) -> np.ndarray:
        """(N, n) for subsets (N, n) bool; NaN of items that are no members."""
        found = self.process.means(S)
        for s, members in enumerate(S):
            row = self.gains.row.get(members.tobytes())
            if row is not None:
                known = ~np.isnan(self.gains.values[row])
                found[s, known] = self.gains.values[row, known]
        found[S.sum(1) == 1] = np.where(S[S.sum(1) == 1], 0.0, np.nan)
        return found

    def of_plan(self, plan: Plan) -> np.ndarray:
        """(n,): each item's gain by the subset that serves it."""
        return self.of_items(plan.of_item).diagonal()

    def deviations(self, S: np.ndarray) -> np.ndarray:
        """Standard deviations (N, n) of what is not measured; 0 of what is, and of items that are no members."""
        found = np.nan_to_num(np.sqrt(self.process.variances(S)))
        found[[self.gains.is_measured(members) for members in S]] = 0.0
        return found

    def allowed(self, S: np.ndarray) -> np.ndarray:
        """(N,): which subsets may be in a plan, as their training has not failed."""
        return np.array([members.tobytes() not in self.excluded for members in S], bool)

    def measured(self) -> np.ndarray:
        """The subsets (m, n) that were trained, and each item alone."""
        trained = [members for members in self.gains.members if self.gains.is_measured(members)]
        return np.unique([*trained, *np.eye(len(self.weights), dtype=bool)], axis=0)

    def totals(self, S: np.ndarray, optimistic: bool = False) -> np.ndarray:
        """(N,) weighted sums of the gains; optimistic: with 2 standard deviations of each sum on top."""
        total = np.nan_to_num(self.of_items(S)) @ self.weights
        if optimistic:
            total += OPTIMISM * np.sqrt(self.deviations(S) ** 2 @ self.weights**2)
        return np.where(self.allowed(S), total, IMPOSSIBLE)


def every_subset(n: int) -> np.ndarray:
    """(2^n, n) bool: row r holds the items whose bits r has."""
    return (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(bool)


# ---- exactly --------------------------------------------------------------------------------------------------------


def convolve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """c[m] = max over s within m of a[s] + b[m without s], all (2^h,): the subset convolution over (max, +).

    Each bit makes three halves of the two: a low + b low, a high + b low, a low + b high; 3^h sums, and no index.
    """
    if len(a) > 2**BLOCK_BITS:
        half = len(a) // 2
        high = np.maximum(convolve(a[half:], b[:half]), convolve(a[:half], b[half:]))
        return np.concatenate([convolve(a[:half], b[:half]), high])
    a, b, bits = a[None], b[None], len(a).bit_length() - 1
    for _ in range(bits):
        half = a.shape[1] // 2
        a = np.concatenate([a[:, :half], a[:, half:], a[:, :half]])
        b = np.concatenate([b[:, :half], b[:, :half], b[:, half:]])
    c = a + b
    for _ in range(bits):
        third = len(c) // 3
        c = np.concatenate([c[:third], np.maximum(c[third:2 * third], c[2 * third:])], axis=1)
    return c[0]


def best_partition(values: np.ndarray, budget: int | None = None) -> list[int]:
    """The bit masks of the partition of n items into at most `budget` subsets with the largest sum of values (2^n,)."""
    n = len(values).bit_length() - 1
    limited = budget is not None and budget < n
    few = np.flatnonzero(values[1:] > IMPOSSIBLE / 2) + 1
    layers = [np.full(2**n, IMPOSSIBLE)]  # best value of each union, by one more subset in each layer
    layers[0][0] = 0.0
    for layer in range(budget if limited else 1):
        best = layers[-1].copy() if limited else layers[0]
        for h in range(n):  # the subset with the highest bit, and what is left of the lower ones
            low, high = slice(0, 2**h), slice(2**h, 2 ** (h + 1))
            if len(few) > 2**n / 8:
                best[high] = np.maximum(best[high], convolve(values[high], layers[layer][low]))
                continue
            masks = np.arange(2**h, 2 ** (h + 1))
            for s in few[(few >= 2**h) & (few < 2 ** (h + 1))]:
                inside = masks[(masks & s) == s]
                best[inside] = np.maximum(best[inside], values[s] + layers[layer][inside ^ s])
        layers.append(best)
    found, left, layer = [], 2**n - 1, len(layers) - 1
    if layers[-1][-1] < IMPOSSIBLE / 2:
        raise InputError(f"--budget {budget}: cannot serve all items, because trainings that it would need have failed")
    while left:
        below = layers[layer - 1] if limited else layers[0]
        if limited and below[left] >= layers[layer][left]:
            layer -= 1
            continue
        top = 2 ** (left.bit_length() - 1)
        masks = np.arange(top, 2 * top)
        masks = masks[(masks & left) == masks]
        mask = int(masks[np.argmax(values[masks] + below[left ^ masks])])
        found.append(mask)
        left ^= mask
        layer -= 1 if limited else 0
    return found


def best_cover(of_items: np.ndarray, deviations: np.ndarray, allowed: np.ndarray, budget: int | None) -> Plan:
    """The best subsets where an item may be in several and the best serves it: (2^n, n) each, allowed (2^n,).

    Whom a subset serves is a partition again: a union of served items is worth what the best subset around it gives.
    """
    every = every_subset(of_items.shape[1])
    values, giver = np.full(len(every), IMPOSSIBLE), np.zeros(len(every), int)
    values[0] = 0.0
    for s in np.flatnonzero(allowed[1:]) + 1:
        inside = np.flatnonzero((np.arange(len(every)) & ~s) == 0)[1:]
        worth = every[inside] @ np.nan_to_num(of_items[s]) + OPTIMISM * np.sqrt(every[inside] @ deviations[s] ** 2)
        better = worth > values[inside]
        values[inside[better]], giver[inside[better]] = worth[better], s
    parts = best_partition(values, budget)
    givers = sorted({int(giver[part]) for part in parts})
    served = np.array([next(givers.index(giver[part]) for part in parts if part >> i & 1)
                       for i in range(of_items.shape[1])])
    return Plan(every[givers], served, True)


# ---- by local search ------------------------------------------------------------------------------------------------


class Search:
    """Local search over partitions of n items; blocks are bit masks (Python integers), their values are kept."""

    def __init__(self, totals: Callable[[np.ndarray], np.ndarray], n: int, budget: int | None, seed: int):
        self.totals, self.n, self.budget = totals, n, min(budget or n, n)
        self.rng = np.random.default_rng(seed)
        self.known: dict[int, float] = {0: 0.0}

    def mask(self, members: np.ndarray) -> int:
        return int.from_bytes(np.packbits(members, bitorder="little").tobytes(), "little")

    def members(self, masks: Iterable[int]) -> np.ndarray:
        size = (self.n + 7) // 8
        packed = np.frombuffer(b"".join(mask.to_bytes(size, "little") for mask in masks), np.uint8)
        return np.unpackbits(packed.reshape(-1, size), axis=1, count=self.n, bitorder="little").astype(bool)

    def values(self, masks: list[int]) -> np.ndarray:
        new = list({mask for mask in masks if mask not in self.known})
        if new:
            self.known.update(zip(new, self.totals(self.members(new)).tolist(), strict=True))
        return np.array([self.known[mask] for mask in masks])

    def value(self, blocks: list[int]) -> float:
        return float(self.values(blocks).sum())

    def items(self, mask: int) -> list[int]:
        return [i for i in range(self.n) if mask >> i & 1]

    def _changes(self, blocks: list[int], swaps: bool) -> list[tuple[int, int, int, int]]:
        """(a, b, what they become): moves and merges, or swaps; b is 0 for a move into a new block."""
        if swaps:
            return [(a, b, a ^ 1 << i | 1 << j, b ^ 1 << j | 1 << i) for x, a in enumerate(blocks) for b in blocks[:x]
                    for i in self.items(a) for j in self.items(b)]
        open_to = [*blocks, 0] if len(blocks) < self.budget else blocks
        moves = [(a, b, a ^ 1 << i, b | 1 << i) for a in blocks if a & (a - 1) for i in self.items(a)
                 for b in open_to if b != a]
        return moves + [(a, b, a | b, 0) for x, a in enumerate(blocks) for b in blocks[:x]]

    def climb(self, blocks: list[int], swaps: bool = True) -> list[int]:
        """The best change again and again, until none helps; merges first while there are too many blocks."""
        while True:
            for kind in (False, True) if swaps else (False,):
                changes = self._changes(blocks, kind)
                if not changes:
                    continue
                before, after = ([self.values([change[place] for change in changes]) for place in places]
                                 for places in ((0, 1), (2, 3)))
                gain = sum(after) - sum(before)
                if len(blocks) > self.budget:
                    gain[[change[3] != 0 for change in changes]] = -np.inf
                best = int(np.argmax(gain))
                if gain[best] > 1e-12 or len(blocks) > self.budget:
                    a, b, *new = changes[best]
                    blocks = [block for block in blocks if block not in (a, b)] + [block for block in new if block]
                    break
            else:
                return blocks

    def insert(self, blocks: list[int], new: int) -> list[int]:
        """`new` as a block; what is left of those it takes from falls apart where that is worth less than nothing."""
        kept = [new]
        for block in blocks:
            rest = block & ~new
            falls = rest != block and self.values([rest])[0] < 0
            kept += [1 << i for i in self.items(rest)] if falls else [rest] if rest else []
        return kept

    def kick(self, blocks: list[int], pool: list[int]) -> list[int]:
        if pool and self.rng.random() < 0.5:
            return self.insert(blocks, pool[int(self.rng.integers(len(pool)))])
        blocks = list(blocks)
        for i in self.rng.choice(self.n, min(4, self.n), replace=False).tolist():
            at = int(self.rng.integers(len(blocks)))
            blocks = [block & ~(1 << i) | (1 << i if x == at else 0) for x, block in enumerate(blocks)]
            blocks = [block for block in blocks if block]
        return blocks

    def run(self, starts: list[list[int]], pool: list[int], kicks: int) -> list[int]:
        """The best partition found from `starts`, from the disjoint best of `pool`, and from kicks."""
        value = dict(zip(pool, self.values(pool), strict=True)) if pool else {}
        pool = sorted((mask for mask in pool if value[mask] > 0), key=lambda mask: -value[mask] / mask.bit_count())
        packed = [1 << i for i in range(self.n)]
        for mask in pool:
            if all(not block & mask or not block & (block - 1) for block in packed):
                packed = self.insert(packed, mask)
        best = max((self.climb(start, swaps=False) for start in [*starts, packed]), key=self.value)
        best = self.climb(best)
        for _ in range(kicks):
            found = self.climb(self.kick(best, pool[:4 * self.n]), swaps=False)
            if self.value(found) > self.value(best):
                best = self.climb(found)
        return best


def exchange(plan: Plan, pool: np.ndarray, of_items: np.ndarray, budget: int) -> Plan:
    """The plan, with subsets put in and exchanged for others of `pool` (N, n) for as long as that helps.

    of_items (N, n): weighted gains, IMPOSSIBLE where an item is no member.
    """
    places = {members.tobytes(): s for s, members in enumerate(pool)}
    chosen = [places[members.tobytes()] for members in plan.subsets]
    value = of_items[chosen].max(0).sum()
    improved = True
    while improved:
        improved = False
        for at in range(min(len(chosen) + 1, budget)):
            rest = [s for x, s in enumerate(chosen) if x != at]
            others = of_items[rest].max(0) if rest else np.full(pool.shape[1], IMPOSSIBLE)
            totals = np.maximum(others, of_items).sum(1)
            if totals.max() > value + 1e-12:
                value, chosen, improved = totals.max(), [*rest, int(totals.argmax())], True
    served = of_items[chosen].argmax(0)
    used = sorted(set(served))
    return Plan(pool[[chosen[s] for s in used]], np.array([used.index(s) for s in served]))


# ---- either way -----------------------------------------------------------------------------------------------------


def choose(worth: Worth, budget: int | None = None, overlap: bool = False, optimistic: bool = False,
           pool: np.ndarray | None = None, seed: int = 0, start: Plan | None = None, kicks: int = KICKS) -> Plan:
    """The best plan by what subsets are worth; without overlap every item is in one subset.

    pool (N, n): the only subsets to choose among (default: all there are); start: a plan that the search begins from.
    Raises InputError where a budget cannot serve all items.
    """
    n = len(worth.weights)
    if n > (MOST_EXACT_OVERLAP if overlap else MOST_EXACT):
        return _by_search(worth, budget, overlap, optimistic, pool, seed, start, kicks)
    every, subsets = every_subset(n), every_subset(n)[1:] if pool is None else pool
    masks = subsets @ (1 << np.arange(n))
    if not overlap:
        values = np.full(2**n, IMPOSSIBLE)
        values[0], values[masks] = 0.0, worth.totals(subsets, optimistic)
        return partition(every[best_partition(values, budget)], exact=pool is None)
    of_items, deviations, allowed = np.zeros(every.shape), np.zeros(every.shape), np.zeros(2**n, bool)
    of_items[masks], allowed[masks] = worth.of_items(subsets) * worth.weights, worth.allowed(subsets)
    if optimistic:
        deviations[masks] = worth.deviations(subsets) * worth.weights
    return replace(best_cover(of_items, deviations, allowed, budget), exact=pool is None)


def _by_search(worth: Worth, budget: int | None, overlap: bool, optimistic: bool, pool: np.ndarray | None, seed: int,
               start: Plan | None, kicks: int) -> Plan:
    n = len(worth.weights)
    search = Search((lambda S: worth.totals(S, optimistic)) if pool is None else
                    (lambda S: np.full(len(S), IMPOSSIBLE)), n, budget, seed)
    known = worth.gains.members if pool is None else pool
    masks = [search.mask(members) for members in known]
    search.known.update(zip(masks, worth.totals(known, optimistic).tolist(), strict=True))
    given = [[search.mask(members) for members in start.subsets]] if start is not None else []
    blocks = search.run([[1 << i for i in range(n)], [(1 << n) - 1], *given], masks, kicks)
    if search.value(blocks) < IMPOSSIBLE / 2:
        raise InputError(f"--budget {budget}: found no plan that serves all items without trainings that have failed")
    plan = partition(search.members(blocks))
    if not overlap:
        return plan
    tried = search.members([mask for mask, value in search.known.items() if mask and value > IMPOSSIBLE / 2])
    of_items = worth.of_items(tried) + (OPTIMISM * worth.deviations(tried) if optimistic else 0.0)
    return exchange(plan, tried, np.where(tried, of_items * worth.weights, IMPOSSIBLE), budget or n)
