"""Draw subsets of items: uniformly or balanced, from all items or around clusters; count what is possible and covered.

A subset is a tuple of item names in natural order (`rte_2` before `rte_10`), so that one set has one spelling.
Every draw is a function of the seed, the space and the subsets drawn so far, nothing else.
"""

import functools
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

from src.cli import InputError, did_you_mean
from src.files import read_text
from src.names import natural_order

Subset = tuple[str, ...]

TRIES = 8  # candidates of which the balanced draw takes the best
ENOUGH = 2  # times that a pair should be seen
MOST_FOR_PAIRS = 8  # items up to which a plan starts from all pairs
DECAY = 0.05  # worth of a pair seen once more often than the least seen


def subset(items: Iterable[str]) -> Subset:
    """Return the canonical spelling of a set of items."""
    return tuple(sorted(set(items), key=natural_order))


@dataclass(frozen=True)
class Space:
    """The subsets that may be drawn: `smallest` to `largest` members, at least one of them in `targets`.

    With clusters, all members are of one cluster or unplaced.
    """

    items: Subset
    smallest: int
    largest: int
    targets: Subset = ()
    clusters: tuple[Subset, ...] = ()

    def __post_init__(self):
        if self.smallest < 1 or self.smallest > self.largest:
            raise InputError(f"--min_task_num {self.smallest} --max_task_num {self.largest}: "
                             "must be at least 1, and the smallest not larger than the largest")
        longest = max(map(len, self.full_clusters))
        if self.largest > longest:
            raise InputError(f"--max_task_num {self.largest}: there are only {longest} items to draw from"
                             + (" in the largest cluster with all unplaced items" if self.clusters else ""))
        check_members("--target_tasks", self.targets, self.items)

    @property
    def unplaced(self) -> Subset:
        """Items of no cluster: they go with every cluster."""
        placed = set(itertools.chain(*self.clusters))
        return tuple(item for item in self.items if item not in placed)

    @functools.cached_property
    def full_clusters(self) -> list[Subset]:
        """Each cluster with the unplaced items, within which a subset lies; without clusters, all items."""
        return [subset(cluster + self.unplaced) for cluster in self.clusters] or [self.items]

    def possible(self) -> int:
        """How many subsets there are. Full clusters share exactly the unplaced items, so those count once."""
        def count(cluster: Sequence[str]) -> int:
            others = len(set(cluster) - set(self.targets)) if self.targets else -1
            return sum(comb(len(cluster), size) - (comb(others, size) if others >= 0 else 0)
                       for size in range(self.smallest, self.largest + 1))

        shared = len(self.full_clusters) - 1
        return sum(map(count, self.full_clusters)) - shared * count(self.unplaced)

    def __contains__(self, members: Subset) -> bool:
        return (self.smallest <= len(members) <= self.largest
                and any(set(members) <= set(cluster) for cluster in self.full_clusters)
                and (not self.targets or bool(set(members) & set(self.targets))))

    def combinations(self) -> Iterator[Subset]:
        """All subsets, smaller first, in the order of the items."""
        for size in range(self.smallest, self.largest + 1):
            found = itertools.chain(*(itertools.combinations(cluster, size) for cluster in self.full_clusters))
            yield from (members for members in dict.fromkeys(found) if members in self)

    @functools.cached_property
    def pairs(self) -> list[Subset]:
        """All pairs that some subset can hold together."""
        found = itertools.chain(*(itertools.combinations(cluster, 2) for cluster in self.full_clusters))
        pairs = list(dict.fromkeys(found))
        if self.targets and self.largest == 2:
            pairs = [pair for pair in pairs if set(pair) & set(self.targets)]
        return pairs


def draw(space: Space, number: int | None, seed: int, balanced: bool = False,
         taken: Iterable[Subset] = ()) -> list[Subset]:
    """Draw subsets not in `taken` until `number` are drawn or none is left.

    Uniform: the size first, then the cluster, then the members. Balanced: go on from `taken`, pairs seen least first.
    Without `number`, until every pair is seen `ENOUGH` times.
    """
    taken = list(taken)
    rng = random.Random(f"{seed} {len(taken)}")
    left = space.possible() - sum(members in space for members in set(taken))
    seen, drawn = set(taken), []
    counts = count_pairs(taken)

    def wanted() -> bool:
        if number is not None:
            return len(drawn) < number
        return any(counts[pair] < ENOUGH for pair in space.pairs)

    while len(drawn) < left and wanted():
        members = _balanced(space, rng, counts, seen) if balanced else None
        while members is None or members in seen:  # what repeats is drawn again: uniform over what is left
            members = _uniform(space, rng)
        seen.add(members)
        drawn.append(members)
        counts.update(itertools.combinations(members, 2))
    return drawn


def _uniform(space: Space, rng: random.Random) -> Subset:
    while True:
        size, cluster = rng.randint(space.smallest, space.largest), rng.choice(space.full_clusters)
        if size <= len(cluster) and (members := subset(rng.sample(cluster, size))) in space:
            return members


def _balanced(space: Space, rng: random.Random, counts: Counter, seen: set[Subset]) -> Subset | None:
    """The best of some greedy subsets, each grown from a least-seen pair; None where all of them are in `seen`."""
    pairs = space.pairs
    if space.largest == 1 or not pairs:
        return None
    size = max(2, rng.randint(space.smallest, space.largest))
    least = min(counts[pair] for pair in pairs)
    starts = [pair for pair in pairs if counts[pair] == least]

    def worth(a: str, b: str) -> float:
        return DECAY ** (counts[(a, b)] + counts[(b, a)] - least)

    best, best_score = None, -1.0
    for _ in range(TRIES):
        members = list(rng.choice(starts))
        cluster = rng.choice([cluster for cluster in space.full_clusters if set(members) <= set(cluster)])
        has_target = not space.targets or bool(set(members) & set(space.targets))  # is a target among the members?
        score = worth(*members)
        gain = {item: sum(worth(item, member) for member in members) for item in cluster if item not in members}
        while len(members) < size or not has_target:
            candidates = [item for item in gain if has_target or item in space.targets]
            if not candidates:
                break
            rng.shuffle(candidates)  # ties go to chance
            item = max(candidates, key=gain.__getitem__)
            score += gain.pop(item)
            members.append(item)
            has_target = True
            for other in gain:
                gain[other] += worth(other, item)
        found = subset(members)
        score /= comb(len(members), 2)
        if score > best_score and found not in seen and found in space:
            best, best_score = found, score
    return best


def start_set(items: Iterable[str], seed: int) -> list[Subset]:
    """The subsets that a plan starts from: each item alone, all, all but one; all pairs, or of more than 8 items
    2 n random halves in place of them.
    """
    items = subset(items)
    n, rng = len(items), random.Random(seed)
    found = [(item,) for item in items] + [items] + [subset(set(items) - {item}) for item in items if n > 1]
    if n <= MOST_FOR_PAIRS:
        return list(dict.fromkeys([*found, *itertools.combinations(items, 2)]))
    wanted = len(found) + 2 * n
    while len(found) < wanted:
        half = subset(rng.sample(items, n // 2))
        if half not in found:
            found += [half, subset(set(items) - set(half))]
    return found


def count_pairs(subsets: Iterable[Subset]) -> Counter:
    """How often each pair of items is in one subset."""
    return Counter(pair for members in subsets for pair in itertools.combinations(members, 2))


def coverage(space: Space, subsets: Iterable[Subset]) -> str:
    """One line: how many of the pairs are seen together, and how often."""
    counts, pairs = count_pairs(subsets), space.pairs
    if not pairs:
        return "coverage: single items, no pairs"
    times = [counts[pair] for pair in pairs]
    return (f"coverage: {sum(map(bool, times))} of {len(pairs)} pairs seen together, "
            f"each {min(times)} to {max(times)} times (mean {sum(times) / len(times):.1f})")


def check_members(where: str, members: Iterable[str], items: Sequence[str]) -> None:
    """Raise InputError for a member that is not among `items` or is named twice."""
    members = list(members)
    for member in members:
        if items is not None and member not in items:
            raise InputError(f"{where}: unknown item '{member}': {did_you_mean(member, items)}")
        if members.count(member) > 1:
            raise InputError(f"{where}: '{member}' is named {members.count(member)} times")


def read_subsets(path: Path, items: Sequence[str] | None, task: str | None = None) -> list[Subset]:
    """Read a file of subsets or clusters: one a line, members separated by spaces; `#` starts a comment.

    With `task`, a bare index `3` means that task's template: `rte_3`.
    """
    lines = read_text(Path(path)).splitlines()
    found: dict[Subset, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        members = [f"{task}_{word}" if task and re.fullmatch(r"-?\d+", word) else word for word in words]
        check_members(f"{path}, line {number}", members, items)
        if members and found.setdefault(subset(members), number) != number:
            raise InputError(f"{path}, line {number}: the same subset as line {found[subset(members)]}")
    if not found:
        raise InputError(f"{path}: holds no subset")
    return list(found)


def cluster_file(flag: str, name: str | Path, folder: str | Path = "clusters") -> Path:
    """The cluster file that a flag names, by its path or as <folder>/<name>.txt."""
    for path in (Path(name), Path(folder) / f"{name}.txt"):
        if path.is_file():
            return path
    raise InputError(f"{flag} {name}: there is neither a file {name} nor {Path(folder) / f'{name}.txt'}")


def read_clusters(path: Path, items: Sequence[str] | None = None, task: str | None = None) -> tuple[Subset, ...]:
    """Read a cluster file; raise InputError where one item is in two clusters, or is not among `items`."""
    clusters = read_subsets(path, items, task)
    check_members(str(path), itertools.chain(*clusters), items)
    return tuple(clusters)
