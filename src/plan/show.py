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
MOST_LOSSES, MOST_RANKED = 10, 20  # lines
MOST_WRITTEN = 200  # losses in plan.json


@dataclass
class Rival:
    """A way to train all items, beside others: its plan; gains (n,) and (low, high) (n,) of the items; how it was
    measured; gain, low, high of all items, and what that interval comes from; chance that the plan is better, None
    where not known.
    """

    name: str
    plan: Plan
    gains: np.ndarray
    low: np.ndarray
    high: np.ndarray
    source: str
    total: tuple[float, float, float]
    interval_by: str
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
                 "passes"), rows,
                title=f"plan: {len(ours.plan.subsets)} subsets; gains over alone: {ours.source}",
                caption="passes: how often the training went over the item's rows")
    print_table(("", "subsets", "gain", "90 % interval", "interval by", "known by", "plan is better"), [
        (rival.name, str(len(rival.plan.subsets)), amount(rival.total[0], gains.unit),
         "-" if rival.name == "alone" else within(*rival.total[1:], gains.unit), rival.interval_by, rival.source,
         "-" if rival.chance is None else f"{rival.chance:.0%}") for rival in rivals],
        title="gain over alone, mean over items", caption="plan is better: how likely that is" + (
            "; optimism: what choosing by noisy scores adds to the best" if "optimism" in ours.source else ""))
    print_losses(gains)


def losses(gains: Gains) -> list[dict]:
    """Who loses with whom, by how much: all measured losses over alone, the largest first; error None where unknown."""
    values = np.where(gains.estimated[:, None], np.nan, gains.values)
    found = sorted((values[s, i], s, i) for s, i in zip(*np.nonzero(values < 0), strict=True))
    return [{"item": gains.items[i], "with": [name for name in gains.names(gains.members[s]) if name != gains.items[i]],
             "gain": number(value), "error": number(gains.errors[s, i])} for value, s, i in found]


def print_losses(gains: Gains) -> None:
    found = losses(gains)
    rows = [(row["item"], " ".join(row["with"]), amount(row["gain"], gains.unit) + (
        "" if row["error"] is None else f" \N{PLUS-MINUS SIGN} {amount(row['error'], gains.unit)[1:]}"))
        for row in found[:MOST_LOSSES]]
    if rows:
        print_table(("item", "trained with", "gain over alone"), rows,
                    title=f"negative transfer: {len(rows)} of {len(found)} measured losses")


def print_ranking(item: str, rows: list[tuple[str, float, float, float, str]], unit: str, title: str) -> None:
    """rows: subset or source, gain, low, high, how known; the best first."""
    print_table((title, f"{'score' if unit == 'score' else 'gain'} of {item}", "90 % interval", "known by"), [
        (name, amount(gain, unit), within(low, high, unit), how) for name, gain, low, high, how in rows[:MOST_RANKED]])


def predictor_line(process: Process, unit: str) -> str:
    if np.isnan(process.error):
        return "predictor: too little is measured to say how good it is"
    rank = "-" if np.isnan(process.rank_correlation) else f"{process.rank_correlation:.2f}"
    return (f"predictor: {describe(process)}; left out one by one: error {amount(process.error, unit)[1:]}, rank "
            f"correlation {rank}, {process.coverage:.0%} within their 90 % interval")


def describe(process: Process) -> str:
    return f"gaussian process, c {process.c:g}, noise {process.noise:g}"


def number(value: float) -> float | None:
    """For JSON: None where a number is not known."""
    return None if np.isnan(value) else round(float(value), 6)


def as_json(plan: Rival, gains: Gains, settled: bool, process: Process) -> dict:
    """What plan.json says of the plan; null where a number is not known."""
    gain, low, high = map(number, plan.total)
    return {"subsets": [list(gains.names(members)) for members in plan.plan.subsets],
            "served_by": {item: list(gains.names(plan.plan.of_item[i])) for i, item in enumerate(gains.items)},
            "gain": gain, "gain_low": low, "gain_high": high,
            "measured": sum(gains.is_measured(members) or int(members.sum()) == 1 for members in plan.plan.subsets),
            "settled": settled, "predictor": describe(process), "error": number(process.error),
            "rank_correlation": number(process.rank_correlation), "coverage": number(process.coverage),
            "gap": 0.0 if plan.plan.exact else None}


def details(rivals: list[Rival], gains: Gains, how: list[str], passes: dict[str, float]) -> dict:
    """What plan.json says beside the plan: the gains of each item by all rivals, the plan the last, and the losses."""
    found = losses(gains)
    return {"unit": gains.unit, "known_by": dict(zip(gains.items, how, strict=True)), "passes": passes, "rivals": [
        {"name": rival.name, "subsets": len(rival.plan.subsets), "source": rival.source, "chance": rival.chance,
         "interval_by": rival.interval_by,
         **dict(zip(("gain", "gain_low", "gain_high"), map(number, rival.total), strict=True)),
         "items": {item: [number(each[i]) for each in (rival.gains, rival.low, rival.high)]
                   for i, item in enumerate(gains.items)}} for rival in rivals],
        "losses": found[:MOST_WRITTEN], "measured_losses": len(found)}


def draw(path: Path, plan: dict) -> None:
    """plan.png: the gains of a plan.json."""
    figure = bars(plan, by_gain(plan))
    figure.axes[0].set_title(f"Gain of each item, by what serves it ({len(plan['served_by'])} items)", fontsize=10,
                             loc="left")
    figure.savefig(path, dpi=150)


def by_gain(plan: dict) -> list[str]:
    """The items of a plan.json, those that gain most first."""
    found = plan["rivals"][-1]["items"]
    return sorted(found, key=lambda item: -found[item][0])


def bars(plan: dict, items: list[str]):
    """A figure of the gains of `items` by all, clusters and plan, of a plan.json; alone is 0, lines are intervals.

    A row of the figure is named `tip:` and what it shows, for a page that shows values under the pointer.
    """
    from matplotlib.figure import Figure  # no display

    rivals, unit = [rival for rival in plan["rivals"] if rival["name"] in COLOURS], plan["unit"]
    thick, factor = 0.78 / len(rivals), 100 if unit == "relative" else 1
    figure = Figure((3.6 + 0.075 * max(map(len, items)), 0.85 + (0.12 + 0.11 * len(rivals)) * len(items)),
                    layout="constrained")
    axes, rows = figure.add_subplot(), np.arange(len(items))
    axes.axvline(0, color="black", linewidth=1, label="alone")
    for at, rival in enumerate(rivals):
        x, low, high = factor * np.array([rival["items"][item] for item in items], float).T
        y = rows + (at - (len(rivals) - 1) / 2) * thick
        axes.barh(y, x, thick * 0.86, color=COLOURS[rival["name"]], label=rival["name"])
        axes.hlines(y, low, high, color="0.25", linewidth=0.8)
    for row, item in enumerate(items):
        found = [(rival["name"], *rival["items"][item]) for rival in rivals]
        words = [f"{name} {amount(gain, unit)}" + ("" if low in (None, high) else f" ({within(low, high, unit)})")
                 for name, gain, low, high in found]
        axes.axhspan(row - 0.5, row + 0.5, facecolor="none", zorder=9, gid="\n".join([f"tip:{item}", *words]))
    axes.set_yticks(rows, items, fontsize=9)
    axes.set_ylim(len(items) - 0.5, -0.5)
    axes.tick_params(length=0, labelsize=9)
    axes.set_xlabel("gain over alone" + {"relative": ", %", "points": ", points", "gain": ""}[unit], fontsize=9)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=9, ncols=4, loc="outside upper left", frameon=False)
    return figure
