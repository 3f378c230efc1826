"""What a plan looks like: the tables printed, plan.json, plan.png. They show one set of numbers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.cli import print_table
from src.gains import Gains, amount
from src.plan.choose import Plan
from src.plan.predict import Process

# of Okabe & Ito: told apart with every common kind of colour blindness
COLOURS = {"all": "#E69F00", "clusters": "#56B4E9", "plan": "#009E73"}
MARKS = {"all": "s", "clusters": "D", "plan": "o"}
MOST_LOSSES, MOST_RANKED = 10, 20  # lines


@dataclass
class Rival:
    """A way to train all items, beside others: its plan; gains (n,) and (low, high) (n,) of the items; how it was
    measured; gain, low, high of all items; chance that the plan is better, None where not known.
    """

    name: str
    plan: Plan
    gains: np.ndarray
    low: np.ndarray
    high: np.ndarray
    source: str
    total: tuple[float, float, float]
    chance: float | None = None


def within(low: float, high: float, unit: str) -> str:
    return "-" if np.isnan(low) else f"{amount(low, unit).removesuffix(' %')} to {amount(high, unit)}"


def print_plan(rivals: list[Rival], gains: Gains, how: list[str], passes: dict[str, float]) -> None:
    """The plan, a line for each item under the subset that serves it, beside what else each item could gain by; then
    all rivals as wholes, and the losses. how, passes: of the items, in the plan.
    """
    *others, ours = [rival for rival in rivals if rival.name != "alone"]
    rows: list[list[str] | None] = []
    for s, members in enumerate(ours.plan.subsets):
        for place, i in enumerate(np.flatnonzero(ours.plan.served == s)):
            item = gains.items[i]
            rows.append(["" if place else " ".join(gains.names(members)), item, amount(ours.gains[i], gains.unit),
                         within(ours.low[i], ours.high[i], gains.unit) if members.sum() > 1 else "-", how[i],
                         *(amount(other.gains[i], gains.unit) for other in others),
                         f"{passes[item]:.3g}" if item in passes else "-"])
        rows.append(None)
    print_table(("subset", "serves", "gain", "90 % interval", "known by", *(f"by {other.name}" for other in others),
                 "passes"), rows, fold="subset",
                title=f"plan: {len(ours.plan.subsets)} subsets; gains over alone: {ours.source}",
                caption="passes: how often the training went over the item's rows")
    print_table(("", "subsets", "gain", "90 % interval", "known by", "plan is better"), [
        (rival.name, str(len(rival.plan.subsets)), amount(rival.total[0], gains.unit),
         "-" if rival.name == "alone" else within(*rival.total[1:], gains.unit), rival.source,
         "-" if rival.chance is None else f"{rival.chance:.0%}") for rival in rivals],
        title="gain over alone, mean over items", caption="plan is better: how likely that is")
    print_losses(gains)


def print_losses(gains: Gains) -> None:
    """Who loses with whom, by how much: the largest measured losses over alone."""
    values = np.where(gains.estimated[:, None], np.nan, gains.values)
    found = sorted((values[s, i], s, i) for s, i in zip(*np.nonzero(values < 0), strict=True))
    rows = []
    for value, s, i in found[:MOST_LOSSES]:
        others = [name for name in gains.names(gains.members[s]) if name != gains.items[i]]
        error = gains.errors[s, i]
        rows.append((gains.items[i], " ".join(others), amount(value, gains.unit)
                     + ("" if np.isnan(error) else f" \N{PLUS-MINUS SIGN} {amount(error, gains.unit)[1:]}")))
    if rows:
        print_table(("item", "trained with", "gain over alone"), rows, fold="trained with",
                    title=f"negative transfer: {len(rows)} of {len(found)} measured losses")


def print_ranking(item: str, rows: list[tuple[str, float, float, float, str]], unit: str, title: str) -> None:
    """rows: subset or source, gain, low, high, how known; the best first."""
    print_table((title, f"{'score' if unit == 'score' else 'gain'} of {item}", "90 % interval", "known by"), [
        (name, amount(gain, unit), within(low, high, unit), how) for name, gain, low, high, how in rows[:MOST_RANKED]],
        fold=title)


def predictor_line(process: Process, unit: str) -> str:
    if np.isnan(process.error):
        return "predictor: too little is measured to say how good it is"
    rank = "-" if np.isnan(process.rank_correlation) else f"{process.rank_correlation:.2f}"
    return (f"predictor: {describe(process)}; left out one by one: error {amount(process.error, unit)[1:]}, rank "
            f"correlation {rank}, {process.coverage:.0%} within their 90 % interval")


def describe(process: Process) -> str:
    return f"gaussian process, c {process.c:g}, noise {process.noise:g}"


def as_json(plan: Rival, gains: Gains, settled: bool, process: Process) -> dict:
    """What plan.json holds; null where a number is not known."""
    gain, low, high = plan.total

    def number(value: float) -> float | None:
        return None if np.isnan(value) else round(float(value), 6)

    return {"subsets": [list(gains.names(members)) for members in plan.plan.subsets],
            "served_by": {item: list(gains.names(plan.plan.of_item[i])) for i, item in enumerate(gains.items)},
            "gain": number(gain), "gain_low": number(low), "gain_high": number(high),
            "measured": sum(gains.is_measured(members) or int(members.sum()) == 1 for members in plan.plan.subsets),
            "settled": settled, "predictor": describe(process), "error": number(process.error),
            "rank_correlation": number(process.rank_correlation), "gap": 0.0 if plan.plan.exact else None}


def draw(path: Path, rivals: list[Rival], gains: Gains) -> None:
    """plan.png: the gain of each item by all, clusters and plan; alone is 0."""
    import matplotlib

    matplotlib.use("Agg")  # no display
    from matplotlib import pyplot

    shown = [rival for rival in rivals if rival.name in COLOURS]
    order = np.argsort(shown[-1].gains, kind="stable")
    factor = 100 if gains.unit == "relative" else 1
    label = "gain over alone" + {"relative": ", %", "points": ", points", "gain": ""}[gains.unit]
    figure, axes = pyplot.subplots(figsize=(7, 1.4 + 0.3 * len(gains.items)), layout="constrained", dpi=150)
    axes.axvline(0, color="black", linewidth=1.2, label="alone")
    for at, rival in enumerate(shown):
        y = np.arange(len(order)) + (at - (len(shown) - 1) / 2) * 0.2
        x, low, high = (factor * each[order] for each in (rival.gains, rival.low, rival.high))
        known = ~np.isnan(low) & ~np.isnan(x)
        axes.hlines(y[known], low[known], high[known], color=COLOURS[rival.name], linewidth=1.2)
        axes.plot(x, y, MARKS[rival.name], color=COLOURS[rival.name], markersize=5, label=rival.name)
    axes.set_yticks(range(len(order)), [gains.items[i] for i in order])
    axes.set_xlabel(label)
    axes.set_title(f"Gain of each item, by which subset serves it ({len(order)} items)", loc="left", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path)
    pyplot.close(figure)
