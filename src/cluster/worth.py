"""What clusters are worth to whoever trains them: gains over alone, measured where they were trained."""

from dataclasses import dataclass

import numpy as np

from src.cli import InputError, warn
from src.cluster.affinity import Affinity
from src.gains import amount, read_gains


@dataclass(frozen=True)
class Worth:
    """Mean gains over alone, over items: by the clusters, of which so many are measured, and by all together (None: not
    trained).
    """

    unit: str
    gain: float
    measured: int
    gain_of_all: float | None


def worth(scores, found: Affinity, labels: np.ndarray, unit: str) -> Worth:
    """Gains by the clusters `labels` (n,): measured, or where they were not trained the means of T - alone over pairs.

    scores: of `choose_metrics`, of subsets of every size; unit: of the gains. Raises InputError where there are none.
    """
    scores = scores[~scores["estimated"].astype(bool)]
    if scores.empty:
        raise InputError("all scores are estimated")
    gains = read_gains(scores, unit, found.items)
    if gains.no_alone:
        raise InputError(f"{len(gains.no_alone)} items were not trained alone: {', '.join(gains.no_alone[:10])}")
    single = scores[scores["item"] == scores["trained_on"]].set_index("item")["value"]
    alone = np.zeros(len(found.items)) if unit == "gain" else single.reindex(list(found.items)).to_numpy(float)
    of_pairs = (found.T - alone[:, None]) / (np.abs(alone)[:, None] if unit == "relative" else 1.0)
    values, measured = np.zeros(len(labels)), 0
    for c in range(int(labels.max()) + 1):
        inside = labels == c
        known = inside.sum() == 1 or gains.is_measured(inside)
        if not known and found.transfer:
            raise InputError(f"{' '.join(gains.names(inside))} were not trained together")
        measured += int(known)  # JSON knows no numbers of numpy
        pairs = of_pairs[np.ix_(inside, inside)]
        values[inside] = gains.of(inside)[inside] if known else np.nansum(pairs, 1) / np.maximum(
            (~np.isnan(pairs)).sum(1), 1)
    every = np.ones(len(labels), bool)
    return Worth(unit, float(values.mean()), measured,
                 float(gains.of(every).mean()) if gains.is_measured(every) else None)


def say(found: Worth, clusters: int, flags: str) -> None:
    """Print what clusters are worth, with a warning where alone or all is better."""
    others = "" if found.measured == clusters else ", the others by the means of their pairs"
    whole = "not trained" if found.gain_of_all is None else amount(found.gain_of_all, found.unit)
    print(f"gain over alone, mean over items: clusters {amount(found.gain, found.unit)} ({found.measured} of {clusters}"
          f" measured{others}), all together {whole}")
    for name, value in (("each item alone", 0.0), ("all items together", found.gain_of_all)):
        if value is not None and value > found.gain:
            warn(f"to train {name} is worth more than these clusters; what to train says "
                 f"python -m src.plan {flags}")
