"""The pictures: affinities as a heat map in the order of clusters, the choice of their number, estimates over truth."""

import os
import re
from pathlib import Path

import numpy as np

COLOURS = "RdBu"  # told apart with every common kind of colour blindness; white is the row's mean
ORANGE, BLUE = "#D55E00", "#0072B2"  # of Okabe & Ito
MOST_WRITTEN = 12  # items: of more, the values do not fit into the cells


def _pyplot():
    os.environ["MPLBACKEND"] = "agg"  # that of a notebook is not known here, and would end the import
    import matplotlib

    matplotlib.use("Agg")  # no display
    from matplotlib import pyplot

    return pyplot


def heat_map(path: str | Path, T: np.ndarray, Z: np.ndarray, items: list[str], labels: np.ndarray, label: str,
             how: str = "with") -> None:
    """Draw Z (n, n), the z-scores of the rows of T, as `matrix` does.

    labels (n,): -1 of items in no cluster; label: of the colours; how: `with` or `after` the column's item.
    """
    figure = matrix(T, Z, items, labels, label)
    figure.suptitle(f"How well the row's item does {how} the column's item ({len(items)} items)", x=0.02, ha="left",
                    fontsize=10)
    figure.savefig(path, dpi=200, bbox_inches="tight")


def matrix(T: np.ndarray, Z: np.ndarray, items: list[str], labels: np.ndarray, label: str):
    """A figure of Z (n, n) in the order of clusters, each outlined, grey where T (n, n) is NaN; its image is `grid`.

    Up to 12 items the values of T are written into the cells. The size grows with n, so that labels stay readable.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # no display
    from matplotlib.patches import Rectangle

    n, order = len(items), np.argsort(labels, kind="stable")
    T, Z, names = T[np.ix_(order, order)], Z[np.ix_(order, order)], [items[i] for i in order]
    inch = float(np.interp(n, [2, 12, 40, 100], [0.55, 0.37, 0.21, 0.14]))  # side of a cell
    font = min(9.0, 62 * inch)  # a cell of `inch` inches has room for a label of 62 `inch` points; more looks coarse
    margin, size = 0.2 + font / 72 * 0.62 * max(map(len, names)), inch * n
    wide = float(np.clip(size, 2.8, 4.0))  # of the scale
    figure = Figure((margin + max(size, wide) + 0.15, margin + size + 1.0))
    place = 1 / np.tile(figure.get_size_inches(), 2)
    axes = figure.add_axes(place * (margin, 0.65, size, size))
    limit = float(np.nanmax(np.abs(Z), initial=0)) or 1.0
    image = axes.imshow(np.ma.masked_where(np.isnan(T), Z), vmin=-limit, vmax=limit, interpolation="nearest",
                        cmap=colormaps[COLOURS].with_extremes(bad="0.88"), gid="grid")
    axes.set_xticks(range(n), names, rotation=90, fontsize=font)
    axes.set_yticks(range(n), names, fontsize=font)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    start = -0.5
    for cluster, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if cluster >= 0:
            axes.add_patch(Rectangle((start, start), count, count, fill=False, edgecolor="black", linewidth=1.8,
                                     clip_on=False))
        start += count
    for i, j in zip(*np.nonzero(~np.isnan(T)), strict=True) if n <= MOST_WRITTEN else ():
        luminance = np.array(image.to_rgba(Z[i, j])[:3]) ** 2.2 @ (0.2126, 0.7152, 0.0722)
        axes.text(j, i, re.sub(r"^(-?)0\.", r"\1.", f"{T[i, j]:.3g}"), ha="center", va="center", fontsize=8.5,
                  color="black" if luminance > 0.18 else "white")  # there both have the same contrast
    scale = figure.add_axes(place * (margin, 0.45, wide, 0.09))
    figure.colorbar(image, cax=scale, orientation="horizontal").outline.set_visible(False)
    scale.set_xlabel(label, fontsize=8, loc="left")
    scale.tick_params(labelsize=8, length=0)
    return figure


def number_of_clusters(path: str | Path, curve: list[dict], chosen: int) -> None:
    """Draw the penalised density, by which `auto` chooses the number, and the other rules, against the number k.

    curve: a dict for each number with k, density, penalised, within.
    """
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(1, 3, figsize=(10.5, 3.4), layout="constrained")
    titles = {"penalised": "density less the penalty for k\n(auto takes its top)",
              "within": "sum within clusters\n(another rule)", "density": "density\n(alone, it splits too much)"}
    k = [row["k"] for row in curve]
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        values = [row[key] for row in curve]
        axes.plot(k, values, "o-", color="0.35", markersize=4)
        axes.axvline(chosen, color=ORANGE, linewidth=2, zorder=0, label=f"chosen: {chosen}")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("number of clusters k")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def scatter(path: str | Path, true: np.ndarray, estimated: np.ndarray, label: str) -> None:
    """Draw estimated over true scores, both (n,), with the lines of equality and of a constant guess."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(5.2, 5), layout="constrained")
    low, high = min(true.min(), estimated.min()), max(true.max(), estimated.max())
    axes.plot([low, high], [low, high], color="0.35", linewidth=1.2, label="equal")
    axes.axhline(true.mean(), color=ORANGE, linewidth=1.2, linestyle="--", label="constant guess")
    axes.scatter(true, estimated, s=14, color=BLUE, alpha=0.7, linewidths=0)
    axes.set_xlabel(f"true {label}")
    axes.set_ylabel(f"estimated {label}")
    axes.set_title(f"{len(true)} scores, a point each", fontsize=10, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
