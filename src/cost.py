"""What trainings cost: those that are finished, and at their rate those that are to come."""

import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """Of finished trainings, of so many subsets: how many, their seconds, their steps."""

    subsets: int = 0
    trainings: int = 0
    seconds: float = 0.0
    steps: int = 0

    @property
    def runs(self) -> int:
        """Trainings of a subset, rounded."""
        return max(round(self.trainings / max(self.subsets, 1)), 1)


def finished(runs_csv: Path) -> Cost:
    """Of the completed runs of a runs.csv; all 0 where there are none, or where their time is not recorded."""
    if not runs_csv.exists():
        return Cost()
    try:
        with runs_csv.open(encoding="utf-8", newline="") as file:
            runs = {row["run_id"]: (row["trained_on"], float(row["seconds"]), int(float(row.get("steps") or 0)))
                    for row in csv.DictReader(file) if row["status"] == "completed" and row.get("seconds")}
    except (ValueError, KeyError, OverflowError, csv.Error):  # edited by hand, or another's: it tells no times
        return Cost()
    return Cost(len({trained_on for trained_on, *_ in runs.values()}), len(runs),
                sum(seconds for _, seconds, _ in runs.values()), sum(steps for *_, steps in runs.values()))


def ahead(cost: Cost, subsets: int, runs: int | None = None, steps: int | None = None, tokens: float = 0.0,
          at_once: int = 1) -> str:
    """`12 trainings, 1,200 steps, about 1.4 h at the rate of the 36 finished (4.2 min each)`, as far as it is known.

    Args:
        cost: of what is finished.
        subsets, runs: to be trained, and how often each (default: as often as the finished ones).
        steps: of each training (default: as the finished ones).
        tokens: of each step, as far as that is known.
        at_once: how many are trained at the same time.
    """
    trainings = subsets * (runs or cost.runs)
    words = [f"{trainings:,} training{'s' * (trainings != 1)}"]
    if steps or cost.steps:
        all_steps = round(trainings * (steps or cost.steps / cost.trainings))
        words.append(f"{all_steps:,} steps")
        if tokens:
            words.append(f"about {float(f'{all_steps * tokens:.2g}'):,.0f} tokens")
    if not cost.trainings:
        return f"{', '.join(words)}; how long they take is known when the first is finished"
    each = cost.seconds / cost.steps * steps if steps and cost.steps else cost.seconds / cost.trainings
    words.append(f"about {duration(trainings * each / at_once)} at the rate of the {cost.trainings:,} finished "
                 f"({duration(each)} each{f', {at_once} at a time' if at_once > 1 else ''})")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """`12 s`, `4.2 min`, `1.4 h`: two digits at least."""
    size, unit = next((size, unit) for size, unit in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= 1.5 * size
                      or size == 1)
    return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
