"""From affinities to the clusters that are written: what is known, how many there are, how good they are."""

import argparse
from pathlib import Path

import numpy as np

from src.cli import InputError, did_you_mean, warn
from src.cluster import affinity, rounding, sdp
from src.cluster.lists import read_clusters, sweep_command, write_lines


def check_coverage(found: affinity.Affinity, old: np.ndarray, args: argparse.Namespace) -> list[str]:
    """Names of the pairs without scores, as far as they matter; raise InputError where they are too many.

    old (n,): cluster of each item that stays where it is, or -1; pairs of two such items decide nothing.
    """
    pairs = [(i, j) for i, j in found.missing() if old[i] < 0 or old[j] < 0]
    path = Path(args.results_dir) / args.save_name / "missing_pairs.txt"
    if not pairs:
        path.unlink(missing_ok=True)
        return []
    names = [f"{found.items[i]} {found.items[j]}" for i, j in pairs]
    listed = ", ".join(names[:10]) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")
    write_lines(path, [name.split() for name in names])
    hint = f"To fill them:\n  {sweep_command(found.items, args, path)}"
    never, few = "never trained together", "was trained with"
    if found.transfer:
        never, few = "without transfer both ways", "has scores after training on"
        hint = "To fill them, train each item with --eval_task_names, or --eval_template_idx, of the others"
    lonely = [item for item, count in zip(found.items, (found.n > 0).sum(1), strict=True)
              if count < min(2, len(found.items) - 1)]
    if lonely:
        raise InputError(f"'{lonely[0]}' {few} fewer than two others; pairs {never}: {listed}.\n{hint}")
    new = old < 0
    share = len(pairs) / (len(old) * (len(old) - 1) // 2 - (~new).sum() * ((~new).sum() - 1) // 2)
    if share > affinity.FEW_MISSING and not args.impute:
        raise InputError(f"{share:.0%} of the pairs were {never}: {listed}.\n{hint}\n"
                         "--impute goes on without them, with the row's mean in their place")
    warn(f"{len(pairs)} pairs ({share:.0%}) were {never} and count as the mean of their row: {listed}.\n{hint}")
    return names


def old_labels(items: tuple[str, ...], args: argparse.Namespace) -> np.ndarray:
    """Cluster of each item in the file of --extend, -1 for a new one; all -1 without."""
    old = read_clusters("--extend", args.extend, args.clusters_dir) if args.extend else []
    place = {item: c for c, cluster in enumerate(old) for item in cluster}
    for item in place:
        if item not in items:
            raise InputError(f"--extend {args.extend}: '{item}' is not in these results, {did_you_mean(item, items)}")
    return np.array([place.get(item, -1) for item in items])


def choose(S: np.ndarray, old: np.ndarray, args: argparse.Namespace) -> tuple[np.ndarray, list[dict], dict]:
    """The labels (n,), the curve over the number of clusters, and the certificate."""
    n, wanted = len(S), 0 if args.num_clusters == "auto" else int(args.num_clusters)
    if not args.extend and wanted > n:
        raise InputError(f"--num_clusters {wanted}: there are only {n} items")
    tried = rounding.extend(S, old, limit=max(rounding.AUTO_LIMIT, int(old.max()) + 1, wanted))
    curve = [{"k": k, "density": sdp.density(S, labels), "within": sdp.within_sum(S, labels),
              "penalised": sdp.penalised_density(S, labels)} for k, labels in sorted(tried.items())]
    k = wanted or rounding.best_number(S, tried)
    if args.extend:
        if k not in tried:
            raise InputError(f"--num_clusters {k}: the old clusters and new items allow {min(tried)} to {max(tried)}")
        labels, relaxation = tried[k], sdp.solve_sdp(S, k)
    else:
        labels, relaxation = rounding.find_clusters(S, k, args.method, args.seed)
        if relaxation is None or labels.max() + 1 != k:  # the published threshold does not keep to k
            k = int(labels.max()) + 1
            relaxation = sdp.solve_sdp(S, k)
    value = sdp.density(S, labels)
    # a relative gap means something where the bound is positive; on matrices without structure it may not be
    gap = max(0.0, 1 - value / relaxation.bound) if relaxation.bound > 1e-6 else None
    certificate = {"density": value, "bound": relaxation.bound, "gap": gap, "iterations": relaxation.iterations}
    if not wanted:  # the relaxation without k, at the penalty of these clusters
        penalty = sdp.penalty(S, labels)
        free = sdp.solve_sdp(S, penalty=penalty)
        certificate |= {"penalty": penalty, "penalised": value - penalty * k, "penalised_bound": free.bound,
                        "trace": float(np.trace(free.X))}
    return labels, curve, certificate


def adjusted_rand_index(items: tuple[str, ...], labels: np.ndarray, args: argparse.Namespace) -> float:
    """Adjusted Rand index (Hubert & Arabie, 1985) of the clusters and those of --reference."""
    from sklearn.metrics import adjusted_rand_score

    reference = read_clusters("--reference", args.reference, args.clusters_dir)
    place = {item: c for c, cluster in enumerate(reference) for item in cluster}
    for item in items:
        if item not in place:
            raise InputError(f"--reference {args.reference}: '{item}' is in no cluster there")
    return float(adjusted_rand_score([place[item] for item in items], labels))


def within_minus_across(T: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each item, its mean affinity to its own cluster less that to the others (n,); NaN where one is empty."""
    same = (labels[:, None] == labels) & ~np.isnan(T)
    other = (labels[:, None] != labels) & ~np.isnan(T)
    values = np.nan_to_num(T)
    with np.errstate(invalid="ignore"):
        return (values * same).sum(1) / same.sum(1) - (values * other).sum(1) / other.sum(1)


def per_cluster(found: affinity.Affinity, S: np.ndarray, labels: np.ndarray,
                coassignment: np.ndarray | None) -> list[dict]:
    """A dict for each cluster: members, share of the density, stability, within_minus_across; None where undefined."""
    differences = within_minus_across(found.T, labels)
    out = []
    for c in range(int(labels.max()) + 1):
        inside = labels == c
        members = [found.items[i] for i in np.flatnonzero(inside)]
        pairs = np.outer(inside, inside) & ~np.eye(len(S), dtype=bool)
        out.append({
            "members": members, "density": float(S[np.ix_(inside, inside)].sum() / len(members)),
            "stability": (float(coassignment[pairs].mean()) if coassignment is not None and len(members) > 1
                          else None),
            "within_minus_across": (float(differences[inside].mean()) if np.isfinite(differences[inside]).all()
                                    else None),
        })
    return out
