"""What a training of items together is worth: measured scores beside those of each item alone and of all."""

import numpy as np


def compare_trainings(scores, clusters: list[list[str]]):
    """A data frame with a row per item: its `oriented` score trained alone, with all items, and in its cluster.

    Columns item, metric, then for each of alone, all, cluster: the mean over seeds and its standard error.
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
    return pd.DataFrame(rows)
