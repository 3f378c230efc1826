"""What a training of items together is worth: measured scores beside those of each item alone and of all.

The gain of item i by subset S, g_i(S), is how much better i does after training on S than alone: relative to the size
of its score alone (of losses; Maninis et al., 2019), in points (of scores), or as it is (of a metric named gain).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from src.cli import InputError, did_you_mean
from src.metrics import LOWER_IS_BETTER, METRICS
from src.names import natural_order
from src.scores import NOT_A_SCORE, oriented

KINDS = {**dict.fromkeys(("loss", "choice_loss", *LOWER_IS_BETTER), "relative"),
         **dict.fromkeys((*METRICS, "choice_accuracy"), "points"), "gain": "gain"}  # metric -> unit of its gains
SMALLEST = 1e-3  # score alone that a gain may be relative to


@dataclass
class Gains:
    """Gains of n items by m subsets; a subset's key is its row of `members` as bytes.

    members (m, n) bool; values (m, n), NaN of an item that is no member or has no score; errors (m, n), their standard
    errors over seeds, NaN with one seed; estimated (m,) bool: from gradients, not from a training.
    """

    items: tuple[str, ...]
    unit: str
    members: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    estimated: np.ndarray
    no_alone: list[str] = field(default_factory=list)  # items whose score alone is missing

    def __post_init__(self):
        self.row = {members.tobytes(): s for s, members in enumerate(self.members)}

    def of(self, members: np.ndarray) -> np.ndarray:
        """Gains (n,) of the items of one subset (n,) bool; NaN where not measured, 0 alone."""
        s = self.row.get(members.tobytes())
        found = np.where(members, 0.0 if members.sum() == 1 else np.nan, np.nan)
        return found if s is None or members.sum() == 1 else self.values[s]

    def is_measured(self, members: np.ndarray) -> bool:
        """Whether all members have a true score after training on them."""
        s = self.row.get(members.tobytes())
        return s is not None and not self.estimated[s] and not np.isnan(self.values[s][members]).any()

    def mask(self, members: Iterable[str]) -> np.ndarray:
        """A subset as (n,) bool."""
        return np.isin(self.items, list(members))

    def names(self, members: np.ndarray) -> tuple[str, ...]:
        return tuple(item for item, inside in zip(self.items, members, strict=True) if inside)


def choose_metrics(scores, words: list[str] | None, main_metrics: Callable[[list[str]], dict[str, str]],
                   lower: list[str], higher: list[str]):
    """The rows of each item's metric, turned so that higher is better.

    words: one metric of all items, or ITEM=METRIC for some; lower, higher: metrics of which the user says which way is
    better. Raises InputError for unknown items and metrics, and for a metric of unknown direction.
    """
    chosen = oriented(scores, words, main_metrics)
    found, used = set(scores["metric"]) - set(NOT_A_SCORE), set(chosen["metric"])
    for flag, named in (("--lower_is_better", lower), ("--higher_is_better", higher)):
        for metric in named:
            if metric not in found:
                raise InputError(f"{flag} {metric}: not in these results, {did_you_mean(metric, found)}")
    unknown = sorted(used - set(KINDS) - set(lower) - set(higher))
    if unknown:
        raise InputError(f"metric '{unknown[0]}': which way is better is not known; say --lower_is_better "
                         f"{unknown[0]} or --higher_is_better {unknown[0]}")
    both = sorted(set(lower) & set(higher))
    if both:
        raise InputError(f"--lower_is_better {both[0]}: is also given to --higher_is_better")
    turn = [m for m in used if (m in lower and m not in LOWER_IS_BETTER) or (m in higher and m in LOWER_IS_BETTER)]
    return chosen.assign(value=np.where(chosen["metric"].isin(turn), -chosen["value"], chosen["value"]))


def unit_of(scores, unit: str | None, lower: list[str], higher: list[str]) -> str:
    """The unit of all gains: as asked for, or else the one that suits all metrics; raise InputError where none does."""
    kinds = dict.fromkeys(lower, "relative") | dict.fromkeys(higher, "points")
    kinds = {metric: "gain" if metric == "gain" else kinds.get(metric, KINDS.get(metric))
             for metric in sorted(set(scores["metric"]))}
    suits = set(kinds.values())
    if "gain" in suits and (len(suits) > 1 or unit not in (None, "gain")):
        raise InputError(f"--unit {unit or '(not given)'}: a metric named gain stays as it is and goes with no other; "
                         f"these results have {', '.join(kinds)}; --metric chooses")
    if unit == "gain" and suits != {"gain"}:
        raise InputError(f"--unit gain: is for a metric named gain, these results have {', '.join(kinds)}; "
                         "must be relative or points")
    if unit is None and len(suits) > 1:
        raise InputError("--unit is needed: these results mix losses and scores ("
                         + ", ".join(f"{metric}: {kind}" for metric, kind in kinds.items())
                         + "); must be relative or points")
    return unit or suits.pop()


def check_size(words: str, value: float) -> None:
    """Raise InputError where a score is too close to 0 for a gain to be relative to it."""
    if abs(value) < SMALLEST:
        raise InputError(f"--unit relative: {words} has a score of size {abs(value):.2g}, too close to 0 (at least "
                         f"{SMALLEST} is needed); --unit points, or another --metric")


def read_gains(scores, unit: str, items: tuple[str, ...] | None = None, fallback=None) -> Gains:
    """Gains of scores that higher is better of, of one status.

    items: by default all that were trained; fallback: scores that give an item's score alone where `scores` have none.
    """
    import pandas as pd

    scores = scores[np.array([row.item in row.trained_on.split() for row in scores.itertuples()], bool)]
    items = items or tuple(sorted(set(scores["item"]), key=natural_order))
    place = {item: i for i, item in enumerate(items)}
    scores = scores[np.array([set(names.split()) <= set(items) for names in scores["trained_on"]], bool)]
    pool = scores if fallback is None else pd.concat([scores, fallback])
    alone = pool[pool["item"] == pool["trained_on"]].drop_duplicates("item").set_index("item")[["value", "variance"]]
    for item, value in alone["value"].items() if unit == "relative" else ():
        check_size(f"'{item}' alone", value)
    if unit == "gain":  # of an item alone it is 0 by definition
        alone = pd.DataFrame({"value": 0.0, "variance": 0.0}, index=list(items))
    subsets = {names: s for s, names in enumerate(dict.fromkeys(scores["trained_on"]))}
    shape = len(subsets), len(items)
    members, values, errors = np.zeros(shape, bool), np.full(shape, np.nan), np.full(shape, np.nan)
    for names, s in subsets.items():
        members[s, [place[name] for name in names.split()]] = True
    s, i = scores["trained_on"].map(subsets).to_numpy(int), scores["item"].map(place).to_numpy(int)
    base, base_variance = (scores["item"].map(alone[name]).to_numpy(float) for name in ("value", "variance"))
    scale = np.abs(base) if unit == "relative" else 1.0
    single = (scores["item"] == scores["trained_on"]).to_numpy()
    values[s, i] = np.where(single, 0.0, (scores["value"].to_numpy(float) - base) / scale)
    errors[s, i] = np.where(single, 0.0, np.sqrt(scores["variance"].to_numpy(float) + base_variance) / scale)
    return Gains(items, unit, members, values, errors, np.zeros(len(subsets), bool),
                 [item for item in items if item not in alone.index])


def fill(measured: Gains, estimated: Gains) -> Gains:
    """The measured gains, and estimated ones of the subsets that no training has measured whole."""
    new = [s for s, members in enumerate(estimated.members) if not measured.is_measured(members)]
    old = [s for s, members in enumerate(measured.members)
           if measured.is_measured(members) or members.tobytes() not in estimated.row]
    join = [np.concatenate([getattr(measured, name)[old], getattr(estimated, name)[new]])
            for name in ("members", "values", "errors")]
    return Gains(measured.items, measured.unit, *join, np.arange(len(old) + len(new)) >= len(old), measured.no_alone)


def amount(value: float | None, unit: str) -> str:
    """A gain with its sign, relative ones in percent, or with `score` a score; `-` where there is none."""
    if value is None or np.isnan(value):
        return "-"
    if unit == "score":
        return f"{value:.4f}"
    return f"{100 * value:+.2f} %" if unit == "relative" else f"{value:+.4f}"
