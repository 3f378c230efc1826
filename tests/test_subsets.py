"""Draws: seeded, distinct, within the space; counts against brute force; files of subsets and clusters."""

import itertools
from collections import Counter

import pytest

from src.cli import InputError
from src.subsets import Space, count_pairs, coverage, draw, read_clusters, read_subsets, subset

TEN = subset(f"t{number}" for number in range(10))


def brute_force(space: Space) -> set:
    return {members for size in range(1, len(space.items) + 1)
            for members in itertools.combinations(space.items, size) if members in space}


SPACES = [
    Space(TEN, 3, 3),
    Space(TEN, 1, 10),
    Space(TEN, 2, 4, targets=("t0", "t9")),
    Space(TEN, 2, 2, targets=("t0",)),
    Space(TEN, 2, 3, clusters=(("t0", "t1", "t2"), ("t3", "t4"))),
    Space(TEN, 2, 3, targets=("t1", "t7"), clusters=(("t0", "t1", "t2"), ("t3", "t4"))),
    Space(TEN, 2, 5, clusters=(TEN[:5], TEN[5:])),
]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("balanced", [False, True])
def test_draws_are_distinct_within_the_space_and_exhaust_it(space, balanced):
    everything = brute_force(space)
    assert space.possible() == len(everything) == len(set(space.combinations())) == len(list(space.combinations()))
    drawn = draw(space, 10_000, 1, balanced)
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == everything
    assert draw(space, 5, 1, balanced, taken=drawn) == []


@pytest.mark.parametrize("balanced", [False, True])
def test_draws_follow_the_seed_and_go_on_from_those_taken(balanced):
    space = SPACES[0]
    first = draw(space, 20, 7, balanced)
    assert first == draw(space, 20, 7, balanced)
    assert first != draw(space, 20, 8, balanced)
    assert not set(draw(space, 20, 7, balanced, taken=first)) & set(first)


def test_uniform_draws_sizes_then_members_evenly():
    space = Space(TEN, 2, 3)
    drawn = [members for seed in range(600) for members in draw(space, 2, seed)]
    sizes = Counter(map(len, drawn))
    assert abs(sizes[2] - 600) < 80  # 1,200 draws, standard deviation 17
    seen = Counter(itertools.chain(*drawn))
    assert max(seen.values()) < 1.3 * min(seen.values())


def test_each_cluster_is_drawn_from_and_none_is_mixed():
    space = Space(TEN, 2, 2, clusters=(("t0", "t1"), ("t2", "t3")))
    drawn = draw(space, 1000, 0)
    assert ("t0", "t1") in drawn and ("t2", "t3") in drawn and ("t0", "t9") in drawn
    assert not any({"t0", "t1"} & set(members) and {"t2", "t3"} & set(members) for members in drawn)


@pytest.mark.parametrize("items, size, number, limit", [(10, 3, 18, 1), (10, 3, 49, 3), (20, 3, 72, 1)])
def test_balanced_draws_cover_all_pairs_soon(items, size, number, limit):
    """18 [lower bound 17], 48 [45] and 70 [67] subsets."""
    space = Space(subset(f"t{i}" for i in range(items)), size, size)
    found = []
    for seed in range(5):
        counts = count_pairs(draw(space, number, seed, balanced=True))
        found.append(min(counts[pair] for pair in space.pairs) >= limit)
    assert sum(found) >= 3


def test_balanced_without_number_sees_every_pair_twice_and_stays_even():
    space = Space(TEN, 3, 3)
    drawn = draw(space, None, 0, balanced=True)
    counts = count_pairs(drawn)
    assert 30 <= len(drawn) <= 36 and min(counts[pair] for pair in space.pairs) == 2
    assert f"45 of 45 pairs seen together, each 2 to {max(counts.values())} times" in coverage(space, drawn)
    assert draw(space, None, 0, balanced=True, taken=drawn) == []


def test_balanced_fills_what_earlier_draws_have_left_out():
    space = Space(TEN, 2, 2)
    first = draw(space, 30, 0)
    assert coverage(space, first + draw(space, 15, 1, balanced=True, taken=first)).startswith("coverage: 45 of 45")


def test_subsets_are_spelled_in_natural_order():
    assert subset(["rte_10", "rte_2", "boolq"]) == ("boolq", "rte_2", "rte_10")


@pytest.mark.parametrize("arguments, words", [
    (dict(smallest=4, largest=2), "--min_task_num 4 --max_task_num 2"),
    (dict(smallest=0, largest=2), "at least 1"),
    (dict(smallest=2, largest=11), "only 10 items"),
    (dict(smallest=2, largest=6, clusters=(TEN[:5], TEN[5:])), "largest cluster"),
    (dict(smallest=2, largest=2, targets=("t11",)), "did you mean"),
])
def test_impossible_spaces(arguments, words):
    with pytest.raises(InputError, match=words):
        Space(TEN, **arguments)


def test_files(tmp_path):
    file = tmp_path / "clusters.txt"
    file.write_text("# found\n0 3 rte_7\n\nrte_1  2 # fine\n")
    items = subset(f"rte_{number}" for number in range(10))
    assert read_subsets(file, items, "rte") == [("rte_0", "rte_3", "rte_7"), ("rte_1", "rte_2")]
    for text, words in (("rte_0 rte_12", "line 1: unknown item 'rte_12'"), ("3 3", "named 2 times"),
                        ("0 1\n1 0", "line 2: the same subset as line 1"), ("# nothing", "holds no subset")):
        file.write_text(text)
        with pytest.raises(InputError, match=words):
            read_subsets(file, items, "rte")
    file.write_text("0 1\n1 2")
    with pytest.raises(InputError, match="'rte_1' is named 2 times"):
        read_clusters(file, items, "rte")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_subsets(tmp_path / "none.txt", items)


def test_subset_files_in_other_encodings(tmp_path):
    path = tmp_path / "subsets.txt"
    path.write_bytes("\ufeffrte cb\r\nñu rte\r\n".encode())
    assert read_subsets(path, None) == [("cb", "rte"), ("rte", "ñu")]
    path.write_bytes("rte cb\nñu rte\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"subsets.txt, line 2: not UTF-8: byte 0xf1"):
        read_subsets(path, None)
