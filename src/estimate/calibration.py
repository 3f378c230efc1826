"""How long a training the small fits stand for, and how large losses are: by a few subsets that were truly trained."""

import random
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.cli import InputError, warn
from src.estimate.compare import relative_error
from src.estimate.fits import Fits
from src.estimate.flags import EstimateArguments
from src.results import MEASURED
from src.scores import read_scores
from src.subsets import Subset, subset
from src.training.experiment import Experiment

STEPS = sorted({round(steps) for steps in np.geomspace(1, 1000, 31)})  # of the descent, to choose from
LEAST = 5e-7  # results have six digits, so that a loss of 0.000000 is below this; its logarithm must be a number
Truth = Mapping[Subset, Mapping[str, float]]  # validation loss of each item after each truly trained subset
# Flags of the estimate that its sweep does not take, or takes by another name.
NOT_OF_SWEEPS = {"project_dim", "strength", "calibrate", "num_samples", "subsets_file", "config_hash", "content_hash",
                 "do_train", "do_eval", "predict_with_generate", "save_name", "run_name", "use_cpu", "no_cuda"}


@dataclass(frozen=True)
class Calibration:
    """Steps of descent, how they were chosen (given, calibration), and what each item's loss is multiplied by."""

    steps: int
    chosen_by: str
    scales: Mapping[str, float] = field(default_factory=dict)  # by item; under "" that of all others

    def scale(self, item: str) -> float:
        return self.scales.get(item, self.scales.get("", 1.0))


def true_losses(experiment: Experiment, options: EstimateArguments, command_line: Sequence[str]) -> Truth:
    """--calibrate subsets of the sweep --save_name; raise InputError, saying what to train, where there are none."""
    names, folder = experiment.names, experiment.results.folder
    found: dict[Subset, dict[str, float]] = {}
    experiment.results.merge()
    if not experiment.results.is_without_scores("valid"):
        scores = read_scores(folder, config_hash=options.config_hash, statuses=MEASURED,
                             content_hash=options.content_hash)
        metrics = {item.name: experiment.loss_metric(item) for item in experiment.items}
        for row in scores.itertuples():
            members = subset(row.trained_on.split())
            if row.metric == metrics.get(row.item) and row.item in members and set(members) <= set(names):
                found.setdefault(members, {})[row.item] = row.value
    if not found:
        raise InputError(f"{folder} holds no subset of these items that was truly trained, which would tell how long a "
                         f"training to estimate; train some: {sweep_command(experiment, options, command_line)} "
                         "or give --strength")
    trained, model = experiment.results.models(), experiment.model.model_name_or_path
    if trained and Path(model) not in map(Path, trained):
        warn(f"the sweep {folder} trained {', '.join(sorted(trained))}, not --model_name_or_path {model}: estimates "
             "may say little about it")
    return {members: found[members] for members in spread(sorted(found), options.calibrate, experiment.training.seed)}


def spread(known: Sequence[Subset], count: int, seed: int) -> list[Subset]:
    """Choose `count` subsets that hold each item about as often as any other."""
    left, chosen, seen = list(known), [], Counter()
    random.Random(f"calibrate {seed}").shuffle(left)
    while left and len(chosen) < count:
        least = min(left, key=lambda members: sum(seen[item] for item in members) / len(members))
        left.remove(least)
        chosen.append(least)
        seen.update(least)
    return chosen


def sweep_command(experiment: Experiment, options: EstimateArguments, command_line: Sequence[str]) -> str:
    """The sweep that trains --calibrate subsets, with the flags that this command was given."""
    given: dict[str, list[str]] = {}
    values: list[str] = []
    for word in command_line:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            given[name] = values = [value] if equals else []
        else:
            values.append(word)
    script, own = "train_sample_tasks.py", set(NOT_OF_SWEEPS)
    words = ["--num_samples", options.calibrate, "--draw", "balanced", "--save_name", experiment.save_name,
             "--task_set_name", experiment.save_name]
    if "task_name" in given:
        script, own = "train_sample_instructions_lora.py", own | {"task_name", "template_idx", "template_idxs",
                                                                  "train_lora"}
        words += ["--dataset", *given["task_name"], "--num_tasks", max(1, *(i + 1 for i in experiment.data.indices()))]
        words += [] if experiment.model.train_lora else ["--lora_rank", 0]
    words += ["--device", "cpu"] if experiment.training.device.type == "cpu" else []
    passed = [word for name, values in given.items() if name not in own for word in (f"--{name}", *values)]
    return f"python {script} {shlex.join(map(str, [*passed, *words]))}"


def calibrate(fits: Fits, truth: Truth) -> Calibration:
    """The steps whose estimates come closest to the true losses, and what remains to be multiplied by."""
    predicted = {members: fits.predict(members, STEPS) for members in truth}
    pairs = [(members, item) for members, losses in truth.items() for item in losses]
    true = np.maximum([truth[members][item] for members, item in pairs], LEAST)
    guesses = np.maximum([predicted[members][item][0] for members, item in pairs], LEAST)  # (pairs, steps)
    errors = [relative_error(true, guess) for guess in guesses.T]
    best = int(np.argmin(errors))
    print(f"calibrated on {len(truth)} true subsets: {STEPS[best]} steps, relative error of their loss "
          f"{errors[best]:.1%} (constant guess {relative_error(true, np.mean(true)):.1%})")
    if best in (0, len(STEPS) - 1):
        warn(f"that is the {'shortest' if best == 0 else 'longest'} training that is tried; these gradients do not "
             "follow the true trainings well")
    return Calibration(STEPS[best], "calibration",
                       item_scales([item for _, item in pairs], np.log(true / guesses[:, best])))


def item_scales(items: Sequence[str], residuals: np.ndarray) -> dict[str, float]:
    """What the loss of each of `items` is multiplied by, and under "" that of all others.

    The residuals log(true / predicted), one for each of `items`, are taken apart into a part that all share and one of
    each item, both shrunk as if one more had been 0. This moves an item's losses all alike: it changes how large they
    are, not which partners are good for it.
    """
    shared = residuals.sum() / (len(residuals) + 1)
    found = {"": float(np.exp(shared))}
    for item in dict.fromkeys(items):
        own = residuals[[name == item for name in items]] - shared
        found[item] = float(np.exp(shared + own.sum() / (len(own) + 1)))
    return found
