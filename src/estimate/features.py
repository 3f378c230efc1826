"""Per-example gradients at one point of training, and the small fits that stand in for training on a subset.

For each example the margin f = log p / (1 - p), the log-odds of its target (or of the right answer choice), and the
gradient g of f with respect to the trained parameters, projected to a few hundred numbers. Near the point where they
were taken, training moves the margin of an example to f + <g, w>; so a subset's training becomes a logistic regression
in w, which takes milliseconds: Li, Sharma and Zhang, "Scalable Multitask Learning Using Gradient-based Estimation of
Task Affinity", 2024 (arXiv 2409.06091); Li, Zhang, Wang and Zhang, "Scalable Fine-tuning from Multiple Data Sources: A
First-Order Approximation Approach", 2024 (arXiv 2409.19458).
"""

import json
import logging
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from src.cli import InputError
from src.estimate.gradients import CHOICES, Gradients, Projection, fingerprint, margin_of, rows_at_once
from src.files import locked, write_whole
from src.identity import short_hash
from src.training.experiment import Data, Experiment
from src.training.tokenised import Prepared

log = logging.getLogger(__name__)
FORMAT = 2  # of the stored arrays
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


@dataclass(frozen=True)
class Part:
    """The rows of one template in one role, longest first: one that does not fit into memory shows at once."""

    role: str
    item: str
    prepared: Prepared
    rows: list[dict]  # input_ids, labels, choices, gold
    margin: str  # what the margin is of: see `margin_of`


class Collection:
    """The features of all rows of `data` at one model, in <cache_dir>/gradients/.

    Args:
        experiment: of one seed, which draws the projection; its batch size and lengths limit the memory.
        model: on the device where its gradients are to be taken.
        data: role -> item name -> one entry per template.
        dim: numbers that each gradient is projected to.
    """

    def __init__(self, experiment: Experiment, model, data: Data, dim: int):
        self.args, self.dim = experiment.training, dim
        self.folder = Path(experiment.data.cache_dir) / "gradients"
        self.room = self.args.per_device_train_batch_size * (
            experiment.data.max_source_length + experiment.data.max_target_length)  # tokens
        self.data, self.gradients, self.at_once = data, Gradients(model, experiment.family), rows_at_once(model)
        self.parts = [
            Part(role, item, entry, sorted(entry.dataset.remove_columns("references").to_list(),
                                           key=lambda row: len(row["input_ids"]), reverse=True),
                 margin_of(entry, experiment.training.score_choices))
            for role, by_item in data.items() for item, entries in by_item.items() for entry in entries]

    def run(self) -> tuple[dict[str, dict[str, list[Features]]], dict[str, float]]:
        """Features by role and item, one entry per template; and what they cost, over all attempts."""
        from rich.progress import Progress

        start, cpu = time.time(), time.process_time()
        scales = None if "sgd" in self.args.optim else self.gradients.scales(list(self._sample()))
        projection = Projection(self.gradients.parameters, self.dim, self.args.seed, scales)
        common = [FORMAT, fingerprint(self.gradients.model), self.dim, self.args.seed, scales is not None,
                  sorted(part.prepared.key for part in self.parts if part.role == "train")]
        costs = {"seconds": time.time() - start, "cpu_seconds": time.process_time() - cpu}
        found = {role: {item: [] for item in by_item} for role, by_item in self.data.items()}
        with Progress(disable=self.args.disable_tqdm or not sys.stderr.isatty(), transient=True) as bar:
            task = bar.add_task("gradients", total=sum(len(part.rows) for part in self.parts))
            for part in self.parts:
                key = short_hash([*common, part.prepared.key, part.margin])
                path = self.folder / f"{part.prepared.template.item}-{part.role}-{key}.npy"
                for done in collect(path, part.rows, part.margin, self.gradients, projection,
                                    self._batch_size(part)):
                    bar.advance(task, done)
                for name in costs:
                    costs[name] += cost(path)[name]
                found[part.role][part.item].append(read_features(path))
        log.info("gradients of %d rows, %.1f s", sum(len(part.rows) for part in self.parts), costs["seconds"])
        tokens = sum(len(row["input_ids"]) for part in self.parts for row in part.rows)
        parameters = self.gradients.model.num_parameters(exclude_embeddings=True)
        return found, costs | {"flops": 6 * tokens * parameters}  # as the trainer counts

    def _batch_size(self, part: Part) -> int:
        """As many rows as take no more room than a training batch of long ones; each answer choice is read alone."""
        longest = max(sum(len(row["input_ids"]) + len(target) for target in (
            row["choices"] if part.margin == CHOICES else [row["labels"]])) for row in part.rows)
        return max(1, min(self.at_once, self.room // longest))

    def _sample(self) -> Iterator[tuple[list[dict], str]]:
        """Batches of training rows of all items, as many of each as of any other."""
        train = [part for part in self.parts if part.role == "train"]
        for part in train:
            count = min(len(part.rows), -(-SAMPLE // len(train)))
            drawn = random.Random(f"scales {self.args.seed}").sample(part.rows, count)
            size = self._batch_size(part)
            for start in range(0, count, size):
                yield drawn[start:start + size], part.margin


def collect(path: Path, rows: Sequence[dict], margin: str, gradients: Gradients, projection: Projection,
            batch_size: int) -> Iterator[int]:
    """Write margins and projected gradients of `rows` to `path` (.npy, memory-mapped), from where it was broken off.

    Args:
        path: its name holds a hash of all that decides the content.
        rows, margin: as `Gradients` takes them; rows in an order that puts rows of like length together.

    Yields:
        the number of rows done at each step, those of an earlier collection first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):  # the same command started twice
        state = cost(path)
        shape = len(rows), COLUMNS + projection.dim
        array = np.lib.format.open_memmap(path, "r+" if state["done"] else "w+", np.float32, shape=shape)
        yield state["done"]
        start, cpu = time.time(), time.process_time()
        while state["done"] < len(rows):
            done = state["done"]
            batch = [rows[i] for i in range(done, min(done + batch_size, len(rows)))]
            try:
                found = _projected(gradients, projection, batch, margin)
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                continue
            if not np.isfinite(found).all():
                raise InputError(f"{path.stem}: a gradient is no finite number; the training that led to this model "
                                 "broke down: lower --learning_rate, or give another --model_name_or_path")
            array[done:done + len(batch)] = found
            array.flush()
            state["done"] += len(batch)
            state["seconds"] += time.time() - start
            state["cpu_seconds"] += time.process_time() - cpu
            start, cpu = time.time(), time.process_time()
            write_whole(path.with_suffix(".json"), json.dumps(state))
            yield len(batch)


def _projected(gradients: Gradients, projection: Projection, batch: Sequence[dict], margin: str) -> np.ndarray:
    # A function of its own, so that one batch's gradients are freed before the next one's are taken.
    by_name, values = gradients(batch, margin)
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
