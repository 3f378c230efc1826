"""One target: from which sources, and in which subsets, it gains most."""

import numpy as np

from src.cli import InputError, did_you_mean
from src.gains import check_size, unit_of
from src.plan import rounds, show
from src.plan.choose import MOST_EXACT, Worth, every_subset
from src.plan.predict import Z90
from src.plan.rivals import how_known, spread
from src.scores import UNTRAINED, transferred
from src.subsets import Subset


def rank_transfer(args, table) -> bool:
    """Print for the target, not trained itself, how well it does after each training on others; whether there are such.

    table: as `known.read_table` gives it. The scores stand beside that of the item alone, or else of the model as it
    was, or else for themselves.
    """
    true = table[table["part"] == "measured"]
    known = sorted(set(true.loc[true["trained_on"] != UNTRAINED, "item"]))
    if args.target not in known:
        raise InputError(f"--target {args.target}: not in these results, {did_you_mean(args.target, known)}")
    of_target = true[true["item"] == args.target]
    rows = of_target[transferred(of_target)].sort_values("value", ascending=False, kind="stable")
    if rows.empty:
        return False
    unit, over = unit_of(rows, args.unit, args.lower_is_better, args.higher_is_better), "not trained alone, so scores"
    value, error, scale = 0.0, 0.0, 1.0
    for name, words in ((args.target, "over alone"), (UNTRAINED, "over the model as it was")):
        if len(base := of_target[of_target["trained_on"] == name]):
            (value, variance), over = base[["value", "variance"]].iloc[0], words
            error = variance
            if unit == "relative":
                check_size(f"'{args.target}' trained on {name}", value)
                scale = abs(value)
            break
    else:
        unit = "score"
    gains = (rows["value"] - value) / scale
    width = Z90 * np.sqrt(rows["variance"] + error) / scale
    print(f"transfer to {args.target}: {over}")
    show.print_ranking(args.target, [(names, gain, gain - w, gain + w, "measured") for names, gain, w in zip(
        rows["trained_on"], gains, width, strict=True)], unit, "trained on")
    return True


def rank(args, worth: Worth, history: list[rounds.Round]) -> list[Subset]:
    """Print sources and subsets ranked for one item trained with them; return what should be trained next."""
    gains, n = worth.gains, len(worth.gains.items)
    at = gains.items.index(args.target)
    pairs = np.eye(n, dtype=bool) | (np.arange(n) == at)
    subsets = every_subset(n) if n <= MOST_EXACT else np.unique(np.concatenate([gains.members, pairs]), axis=0)
    for _ in range(n if n > MOST_EXACT else 0):  # neighbours of the best so far
        best = subsets[np.nanargmax(np.where(subsets[:, at], worth.of_items(subsets)[:, at], -np.inf))]
        more = np.unique(np.concatenate([subsets, best ^ np.eye(n, dtype=bool)]), axis=0)
        if len(more) == len(subsets):
            break
        subsets = more
    subsets = subsets[subsets[:, at]]
    subsets = subsets[worth.allowed(subsets)]
    values = worth.of_items(subsets)[:, at]
    order = np.argsort(-values, kind="stable")
    for title, rows in (("source", [s for s in order if subsets[s].sum() == 2]), ("subset", list(order))):
        rows = rows[:show.MOST_RANKED]
        width = Z90 * spread(worth, subsets[rows])[:, at]
        show.print_ranking(args.target, [
            (" ".join(item for item in gains.names(subsets[s]) if title == "subset" or item != args.target), values[s],
             values[s] - w, values[s] + w, how_known(worth, subsets[s])) for s, w in zip(rows, width, strict=True)],
            gains.unit, title)
    best, spent = subsets[order[0]], rounds.count_spent(history, gains.items, args.seed)
    measured = how_known(worth, best) == "measured" or spent >= rounds.MOST_SPENT * n
    return [] if measured else [gains.names(best)]
