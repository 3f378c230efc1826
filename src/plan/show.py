"""What a plan looks like: the tables printed, plan.json, plan.png. They show one set of numbers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.gains import Gains
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


def amount(value: float, unit: str) -> str:
    """A gain with its sign, relative ones in percent; `-` where there is none."""
    if np.isnan(value):
        return "-"
    return f"{100 * value:+.2f} %" if unit == "relative" else f"{value:+.4f}"


def within(low: float, high: float, unit: str) -> str:
    return "-" if np.isnan(low) else f"{amount(low, unit).removesuffix(' %')} to {amount(high, unit)}"


def _numbers(*names: str) -> list:
    """Columns whose numbers are not broken into lines."""
    from rich.table import Column

    return [Column(name, no_wrap=True) for name in names]


def plan_table(plan: Rival, gains: Gains, how: list[str], passes: dict[str, float]):
    """A line for each item, under the subset that serves it."""
    from rich.table import Column, Table

    folded = [Column(name, overflow="fold") for name in ("subset", "serves")]  # never cut a name
    table = Table(*folded, *_numbers("gain", "90 % interval"), "known by", "passes",
                  title=f"plan: {len(plan.plan.subsets)} subsets; gains over alone: {plan.source}",
                  caption="passes: how often the training went over the item's rows")
    for s, members in enumerate(plan.plan.subsets):
        for place, i in enumerate(np.flatnonzero(plan.plan.served == s)):
            item = gains.items[i]
            table.add_row("" if place else " ".join(gains.names(members)), item, amount(plan.gains[i], gains.unit),
                          within(plan.low[i], plan.high[i], gains.unit) if members.sum() > 1 else "-", how[i],
                          f"{passes[item]:.3g}" if item in passes else "-")
        table.add_section()
    return table


def rivals_table(rivals: list[Rival], unit: str):
    from rich.table import Table

    table = Table("", "subsets", *_numbers("gain", "90 % interval"), "known by", "plan is better",
                  title="gain over alone, mean over items", caption="plan is better: how likely that is")
    for rival in rivals:
        gain, low, high = rival.total
        table.add_row(rival.name, str(len(rival.plan.subsets)), amount(gain, unit),
                      "-" if rival.name == "alone" else within(low, high, unit), rival.source,
                      "-" if rival.chance is None else f"{rival.chance:.0%}")
    return table


def losses_table(gains: Gains):
    """Who loses with whom, by how much: the largest measured losses over alone; None where nobody does."""
    from rich.table import Column, Table

    values = np.where(gains.estimated[:, None], np.nan, gains.values)
    found = sorted((values[s, i], s, i) for s, i in zip(*np.nonzero(values < 0), strict=True))
    if not found:
        return None
    table = Table("item", Column("trained with", overflow="fold"), *_numbers("gain over alone"),
                  title=f"negative transfer: {min(len(found), MOST_LOSSES)} of {len(found)} measured losses")
    for value, s, i in found[:MOST_LOSSES]:
        others = [name for name in gains.names(gains.members[s]) if name != gains.items[i]]
        error = gains.errors[s, i]
        table.add_row(gains.items[i], " ".join(others), amount(value, gains.unit)
                      + ("" if np.isnan(error) else f" \N{PLUS-MINUS SIGN} {amount(error, gains.unit)[1:]}"))
    return table


def target_table(item: str, rows: list[tuple[str, float, float, float, str]], unit: str, title: str):
    """rows: subset or source, gain, low, high, how known; the best first."""
    from rich.table import Column, Table

    table = Table(Column(title, overflow="fold"), *_numbers(f"gain of {item}", "90 % interval"), "known by")
    for name, gain, low, high, how in rows[:MOST_RANKED]:
        table.add_row(name, amount(gain, unit), within(low, high, unit), how)
    return table


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
