"""The pictures of the page: figures of matplotlib as SVG that stands inside HTML, and draws in the page's own font."""

import io
import re

import numpy as np
from markupsafe import Markup, escape

from src.cluster import plots, sdp
from src.plan.show import COLOURS, bars, by_gain
from src.report.facts import Curve, Facts

AT_ONCE = 25  # items in a picture of bars: paper breaks between pictures, not in them
MOST_CURVES = 20  # of one item, beside those that are named
KINDS = {"alone": "#000000", **COLOURS}  # of learning curves
OTHERS = "#c4c4c4"


def svg(figure, words: str, number: str) -> Markup:
    """A figure as inline SVG; `words` say what it shows, `number` keeps its ids apart from those of other pictures.

    What is named `tip:...` in the figure is shown under the pointer.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "page"}):
        figure.savefig(file, format="svg", dpi=200, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    width, box = re.search(r'<svg [^>]*?width="([\d.]+)pt"', text)[1], re.search(r'viewBox="([^"]+)"', text)[1]
    text = text[text.index(">", text.index("<svg ")) + 1:text.rindex("</svg>")]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text,
                  flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text).replace("xlink:href", "href")
    text = re.sub(r'id="tip:', 'data-tip="', text)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: f' id="{number}-{match[1]}"' if match[1] in used else "", text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{number}-", text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    return Markup(f'<svg viewBox="{box}" style="--w:{round(float(width) * 4 / 3)}px" role="img" '
                  f'aria-label="{escape(words)}">{text}</svg>')


def gains(plan: dict) -> list[Markup]:
    """Bars of the gains of all items of a plan.json."""
    items = by_gain(plan)
    parts = [items[at:at + AT_ONCE] for at in range(0, len(items), AT_ONCE)]
    return [svg(bars(plan, part), f"gain over alone of {', '.join(part)}", f"g{at}") for at, part in enumerate(parts)]


def heat_maps(found: dict) -> dict[str, tuple[Markup, dict]]:
    """The heat maps of a clusters.json, affinity and transfer as far as there are, with the values as they stand there.

    Those of older versions know the affinity alone.
    """
    place = {item: c for c, cluster in enumerate(found["clusters"]) for item in cluster}
    whole = [{"transfer": False, "items": found["items"], "values": found["affinity"], "hubs": "keep"}]
    drawn = {}
    for each in found.get("matrices", whole):
        items, T = each["items"], np.array(each["values"], float)
        labels = np.array([place.get(item, -1) for item in items])
        name, between = ("transfer", "after") if each["transfer"] else ("affinity", "with")
        label = "standard deviations from the row's mean" + ("" if each["hubs"] == "keep" else ", hubs removed")
        order = np.argsort(labels, kind="stable")
        drawn[name] = svg(plots.matrix(T, sdp.z_scores(T, each["hubs"]), items, labels, label),
                          f"heat map of {name}, in the order of the clusters", name), {
            "rows": [items[i] for i in order], "between": between,
            "values": [["" if np.isnan(T[i, j]) else f"{T[i, j]:.4g}" for j in order] for i in order]}
    return drawn


def kind_of(trained_on: str, item: str, facts: Facts) -> str:
    """Which of KINDS a subset is for an item; empty for none."""
    members = set(trained_on.split())
    clusters = facts.findings.get("clusters", {}).get("clusters", [])
    served = facts.findings.get("plan", {}).get("served_by", {}).get(item, [])
    subsets = {"alone": {item}, "all": set(facts.items), "plan": set(served),
               "clusters": next((set(cluster) for cluster in clusters if item in cluster), None)}
    return next((kind for kind, subset in subsets.items() if subset == members), "")


def growth(item: str, facts: Facts, number: str) -> Markup:
    """The learning curves of one item: those of KINDS in their colours, of others some in grey."""
    from matplotlib.figure import Figure

    named: list[tuple[str, Curve]] = []
    others: list[Curve] = []
    for curve in facts.curves[item]:
        kind = kind_of(curve.trained_on, item, facts)
        if kind:
            named.append((kind, curve))
        else:
            others.append(curve)
    others = others[::-(-len(others) // MOST_CURVES)] if others else []
    figure = Figure((2.2, 1.5), layout="constrained")
    axes = figure.add_subplot()
    for curve in others:
        axes.plot(curve.steps, curve.values, color=OTHERS, linewidth=0.7)
    for kind, curve in sorted(named, key=lambda each: list(KINDS).index(each[0])):
        axes.plot(curve.steps, curve.values, color=KINDS[kind], linewidth=1.5)
        tip = f"{item} {kind}, seed {curve.seed}\ntrained on {curve.trained_on}\n" + ", ".join(
            f"{value:.4g} at {step:g}" for step, value in zip(curve.steps[-4:], curve.values[-4:], strict=True))
        axes.plot(curve.steps, curve.values, color="none", linewidth=9, gid=f"tip:{tip}")
    axes.tick_params(labelsize=8, length=0)
    axes.xaxis.get_major_locator().set_params(nbins=3, integer=True)
    axes.yaxis.get_major_locator().set_params(nbins=4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.8")
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    return svg(figure, f"{facts.metrics[item]} of {item} by training step", number)
