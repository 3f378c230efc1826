"""What a training of items together is worth: measured scores beside those of each item alone and of all."""

import numpy as np

KINDS = ("alone", "all", "cluster", "gain_over_alone", "gain_over_all")


def compare_trainings(scores, clusters: list[list[str]]):
    """A data frame with a row per item: its `oriented` score trained alone, with all items, and in its cluster.

    Columns item, metric, then for each of KINDS the mean over seeds and, in <kind>_se, its standard error. The gains
    are those of the cluster; NaN where one of the two was not trained.
    """
    import pandas as pd

    found = {(row.item, row.trained_on): row for row in scores.itertuples()}
    every = " ".join(sorted(item for cluster in clusters for item in cluster))
    rows = []
    for cluster in clusters:
        for item in cluster:
            row = {"item": item}
            for kind, subset in (("alone", item), ("all", every), ("cluster", " ".join(sorted(cluster)))):
                score = found.get((item, subset))
                row["metric"] = score.metric if score else row.get("metric")
                row[kind], row[f"{kind}_se"] = (score.value, np.sqrt(score.variance)) if score else (np.nan, np.nan)
            rows.append(row)
    frame = pd.DataFrame(rows)
    for other in ("alone", "all"):
        frame[f"gain_over_{other}"] = frame["cluster"] - frame[other]
        frame[f"gain_over_{other}_se"] = np.hypot(frame["cluster_se"], frame[f"{other}_se"])
    return frame
