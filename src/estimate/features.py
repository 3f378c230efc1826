"""Per-example gradients at one point of training, and the small fits that stand in for training on a subset.

For each example the margin f = log p / (1 - p), the log-odds of its target, and the gradient g of f with respect to the
trained parameters, projected to a few hundred numbers. Near the point where they were taken, training moves the margin
of an example to f + <g, w>; so a subset's training becomes a logistic regression in w, which takes milliseconds: Li,
Sharma and Zhang, "Scalable Multitask Learning Using Gradient-based Estimation of Task Affinity", 2024 (arXiv
2409.06091); Li, Zhang, Wang and Zhang, "Scalable Fine-tuning from Multiple Data Sources: A First-Order Approximation
Approach", 2024 (arXiv 2409.19458).
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from src.cli import InputError
from src.estimate.gradients import Gradients, Projection
from src.files import locked, write_whole

FORMAT = 1  # of the stored arrays
COLUMNS = 3  # of a stored row, before its features: margin, loss of the other target tokens, target tokens
SAMPLE = 256  # training rows from which the scale of each parameter's gradient is estimated


@dataclass(frozen=True)
class Features:
    """n examples: margins (n,), rest (n,) loss in nats of the target tokens beside the margin's, tokens (n,) of the
    target, features (n, d)."""

    margins: np.ndarray
    rest: np.ndarray
    tokens: np.ndarray
    features: np.ndarray


def collect(path: Path, rows: Sequence[dict], first_token: bool, gradients: Gradients, projection: Projection,
            batch_size: int) -> Iterator[int]:
    """Write margins and projected gradients of `rows` to `path` (.npy, memory-mapped), from where it was broken off.

    Args:
        path: its name holds a hash of all that decides the content.
        rows: with input_ids and labels, in an order that puts rows of like length together.

    Yields:
        the number of rows done at each step, those of an earlier collection first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):  # the same command started twice
        state = cost(path)
        shape = len(rows), COLUMNS + projection.width
        array = np.lib.format.open_memmap(path, "r+" if state["done"] else "w+", np.float32, shape=shape)
        yield state["done"]
        start, cpu = time.time(), time.process_time()
        while state["done"] < len(rows):
            done = state["done"]
            batch = [rows[i] for i in range(done, min(done + batch_size, len(rows)))]
            try:
                found = _projected(gradients, projection, batch, first_token)
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                continue
            if not np.isfinite(found).all():
                raise InputError(f"{path.stem}: a gradient is no finite number; the training that led to this model "
                                 "broke down: lower --learning_rate, or give another --start_from")
            array[done:done + len(batch)] = found
            array.flush()
            state["done"] += len(batch)
            state["seconds"] += time.time() - start
            state["cpu_seconds"] += time.process_time() - cpu
            start, cpu = time.time(), time.process_time()
            write_whole(path.with_suffix(".json"), json.dumps(state))
            yield len(batch)


def _projected(gradients: Gradients, projection: Projection, batch: Sequence[dict], first_token: bool) -> np.ndarray:
    # A function of its own, so that one batch's gradients are freed before the next one's are taken.
    by_name, values = gradients(batch, first_token)
    return torch.cat([values, projection(by_name)], 1).cpu().numpy()


def cost(path: Path) -> dict:
    """Rows done, and what they took over all collections: seconds, cpu_seconds."""
    try:
        if not path.exists():
            raise FileNotFoundError
        return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not begun, or its files were damaged: begin anew
        return {"done": 0, "seconds": 0.0, "cpu_seconds": 0.0}


def read_features(path: Path) -> Features:
    """What `collect` has written; the features stay on disk until they are used."""
    array = np.load(path, mmap_mode="r")
    return Features(*(np.array(array[:, column]) for column in range(COLUMNS)), array[:, COLUMNS:])


def shrink(train: dict[str, list[Features]], valid: dict[str, list[Features]]) -> None:
    """Replace exact gradients by as many coordinates as there are training rows, with the same inner products.

    With G = gradients of all training rows (n, p) and G G' = U L U', training rows become U L^(1/2) and any other
    gradient g becomes L^(-1/2) U' G g: descent from w = 0 stays in the span of G, so the fits are the same. p is read
    in slices, so that memory holds n x n numbers, not n x p.
    """
    rows = [part.features for parts in train.values() for part in parts]
    others = [part.features for parts in valid.values() for part in parts]

    def products(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
        total = np.zeros((sum(map(len, left)), sum(map(len, right))))
        width = max(1, 2**26 // max(total.shape))
        for start in range(0, left[0].shape[1], width):
            a, b = (np.concatenate([part[:, start:start + width] for part in side]) for side in (left, right))
            total += a @ b.T
        return total

    values, vectors = np.linalg.eigh(products(rows, rows))
    keep = values > values[-1] * 1e-6
    roots, vectors = np.sqrt(values[keep]), vectors[:, keep]
    for groups, new in ((train, vectors * roots), (valid, products(others, rows) @ (vectors / roots))):
        start = 0
        for parts in groups.values():
            for i, part in enumerate(parts):
                size = len(part.margins)
                parts[i] = Features(part.margins, part.rest, part.tokens, new[start:start + size].astype(np.float32))
                start += size
