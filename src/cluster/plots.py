"""The pictures: affinities as a heat map in the order of clusters, the choice of their number, estimates over truth."""

from pathlib import Path

import numpy as np

COLOURS = "PuOr_r"  # told apart with every common kind of colour blindness; white is the row's mean


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")  # no display
    from matplotlib import pyplot

    return pyplot


def heat_map(path: str | Path, T: np.ndarray, Z: np.ndarray, items: list[str], labels: np.ndarray, label: str,
             how: str = "with") -> None:
    """Draw Z (n, n), the z-scores of the rows of T, ordered by cluster, each cluster outlined, missing pairs grey.

    labels (n,): -1 of items in no cluster; label: of the colours; how: `with` or `after` the column's item.

    Up to 12 items the values of T are written into the cells. The size grows with n, so that labels stay readable.
    """
    pyplot, n = _pyplot(), len(items)
    order = np.argsort(labels, kind="stable")
    T, Z = T[np.ix_(order, order)], Z[np.ix_(order, order)]
    names = [items[i] for i in order]
    inch = float(np.interp(n, [2, 12, 40, 100], [0.85, 0.55, 0.28, 0.17]))  # side of a cell
    size = inch * max(n, 6)
    # a cell of `inch` inches has room for a label of 62 `inch` points; more than 10 looks coarse
    font, large = min(10.0, 62 * inch), 9 + 0.3 * inch * n
    margin = 0.4 + font / 72 * 0.62 * max(map(len, names))
    figure = pyplot.figure(figsize=(margin + size + 1.5, margin + size + 0.6), dpi=150)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((margin / width, 1 - (0.55 + size) / height, size / width, size / height))
    limit = float(np.nanmax(np.abs(Z), initial=0)) or 1.0
    shown = np.ma.masked_where(np.isnan(T), Z)
    colours = pyplot.get_cmap(COLOURS).with_extremes(bad="0.85")
    image = axes.imshow(shown, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_xticks(range(n), names, rotation=90, fontsize=font)
    axes.set_yticks(range(n), names, fontsize=font)
    axes.tick_params(length=2)
    axes.set_title(f"How well the row's item does {how} the column's item ({n} items)", fontsize=large, loc="left")
    start = 0
    for cluster, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if cluster >= 0:
            axes.add_patch(pyplot.Rectangle((start - 0.5, start - 0.5), count, count, fill=False, edgecolor="black",
                                            linewidth=2.2, clip_on=False))
        start += count
    if n <= 12:
        for i, j in zip(*np.nonzero(~np.isnan(T)), strict=True):
            luminance = np.array(image.to_rgba(Z[i, j])[:3]) ** 2.2 @ (0.2126, 0.7152, 0.0722)
            axes.text(j, i, f"{T[i, j]:.3g}", ha="center", va="center", fontsize=8,
                      color="black" if luminance > 0.18 else "white")  # there both have the same contrast
    tall = min(size, 8.0)
    legend = figure.add_axes(((margin + size + 0.15) / width, 1 - (0.55 + tall) / height, 0.2 / width, tall / height))
    figure.colorbar(image, cax=legend)
    legend.set_ylabel(label, fontsize=large)
    legend.tick_params(labelsize=large)
    figure.savefig(path)
    pyplot.close(figure)


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
        axes.axvline(chosen, color="#b35806", linewidth=2, zorder=0, label=f"chosen: {chosen}")
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
    axes.axhline(true.mean(), color="#b35806", linewidth=1.2, linestyle="--", label="constant guess")
    axes.scatter(true, estimated, s=14, color="#542788", alpha=0.7, linewidths=0)
    axes.set_xlabel(f"true {label}")
    axes.set_ylabel(f"estimated {label}")
    axes.set_title(f"{len(true)} scores, a point each", fontsize=10, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
