"""The estimate that one command asks for: the start, its gradients, the small fits, their rows; for each seed."""

import copy
import dataclasses
import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from src import subsets
from src.cli import InputError
from src.estimate.calibration import Calibration, calibrate, true_losses
from src.estimate.compare import SUFFIX
from src.estimate.features import Collection
from src.estimate.fits import Fits
from src.estimate.flags import EstimateArguments
from src.estimate.gradients import rows_at_once
from src.identity import short_hash, trained_hash
from src.names import natural_order
from src.subsets import Space, Subset
from src.training.checkpoints import last_checkpoint
from src.training.experiment import Data, Experiment, report_data
from src.training.record import set_up_logging
from src.training.run import Run

MANY = 200_000  # subsets that nobody wants without saying so


def with_flags(experiment: Experiment, **flags) -> Experiment:
    """The experiment with other flags of its training; the arguments of the one given stay as they are."""
    training = copy.copy(experiment.training)
    for name, value in flags.items():
        setattr(training, name, value)
    return dataclasses.replace(experiment, training=training)


def wanted_subsets(experiment: Experiment, options: EstimateArguments) -> list[Subset]:
    """The subsets that the command line asks for; raise InputError where that cannot be."""
    names = experiment.names
    if options.subsets_file:
        return subsets.read_subsets(Path(options.subsets_file), names, getattr(experiment.data, "task_name", None))
    largest = options.min_task_num if options.max_task_num is None else options.max_task_num
    space = Space(subsets.subset(names), options.min_task_num, largest)
    if options.num_samples is not None:
        return subsets.draw(space, options.num_samples, experiment.training.seed)
    if space.possible() > MANY:
        raise InputError(f"--num_samples is missing: there are {space.possible()} subsets of "
                         f"{options.min_task_num} to {largest} items")
    return list(space.combinations())


class Estimate:
    """One command: for each seed train on all items, or not, take gradients, fit each subset, write rows.

    Args:
        experiment: of the true sweep: its results, in --save_name, are what is calibrated on.
        command_line: for the command that trains what is missing.
    """

    def __init__(self, experiment: Experiment, options: EstimateArguments, command_line: Sequence[str]):
        if experiment.model.train_prefix or experiment.model.train_prompt_tuning:
            raise InputError("--train_prefix and --train_prompt_tuning: estimates are of full training or of "
                             "--train_lora")
        # Rows of both roles are needed. The first training is short: no evaluation, its last model counts.
        self.experiment = dataclasses.replace(
            with_flags(experiment, do_train=True, do_eval=True, do_predict=False, eval_strategy="no",
                       save_strategy="steps", load_best_model_at_end=False, metric_for_best_model=None),
            result=dataclasses.replace(experiment.result, save_name=experiment.save_name + SUFFIX))
        self.trains, self.options, self.save_name = experiment.training.do_train, options, experiment.save_name
        self.experiment.check()
        lengths = experiment.data.max_source_length + experiment.data.max_target_length
        self.experiment.family.check_gradients(experiment.model.model_name_or_path, lengths)
        self.results = self.experiment.results
        self.subsets = wanted_subsets(experiment, options)
        self.truth = true_losses(experiment, options, command_line) if options.strength is None else {}
        set_up_logging(experiment.training)

    def run(self) -> int:
        """Exit code: 0, or 1 where a training failed."""
        seeds = self.experiment.seeds
        for seed in seeds:
            experiment = self.experiment.of_seed(seed)
            selections = experiment.selections()
            data = experiment.rows(selections)
            if seed == seeds[0]:
                report_data(data)
            start = Run(with_flags(experiment, do_train=self.trains, do_eval=False),
                        experiment.content(selections))
            if self.trains and not self._train(start, data):
                return 1
            at = last_checkpoint(start.args) if self.trains else experiment.model.model_name_or_path
            model = self._load(start, at).to(torch.device(start.args.device))
            features, cost = Collection(experiment, model, data, self.options.project_dim).run()
            del model
            fits = Fits(features["train"], features["validation"], experiment.data.mixing,
                        experiment.data.mixing_temperature)
            costs = {"training": self._cost_of_training(start), "gradients": cost}
            for path in (self.results.folder / "runs").glob("estimate-s*"):  # of an estimate that this one replaces
                if int(path.stem.removeprefix("estimate-s")) not in seeds:
                    path.unlink()
            self._fit(fits, costs, start, data, at)
        self._say_what_next()
        return 0

    def _train(self, start: Run, data: Data) -> bool:
        """Train on all items, unless that is done; return whether there is a model now."""
        model = self._load(start, start.experiment.model.model_name_or_path)
        rows_at_once(model)  # before the training, not after it
        del model
        gc.collect()
        start.args.overwrite_output_dir |= last_checkpoint(start.args) is None  # its weights are needed, not its record
        completed = start.execute({"train": data["train"]})
        gc.collect()
        torch.cuda.empty_cache()  # what the training held counts as free only then
        return completed

    def _load(self, start: Run, name: str):
        transformers.set_seed(start.args.seed)  # of a new adapter
        model = dataclasses.replace(start.experiment.model, model_name_or_path=name)
        return dataclasses.replace(start.experiment, model=model).load_model()

    def _cost_of_training(self, start: Run) -> dict[str, float]:
        record = {}
        if self.trains:
            record = json.loads(self.results.part(start.run_id, "json").read_text(encoding="utf-8"))
        return {"seconds": record.get("seconds", 0), "cpu_seconds": record.get("cpu_seconds", 0),
                "flops": sum(entry.get("total_flos", 0) for entry in record.get("training", {}).get("log", []))}

    # ---- from features to rows -------------------------------------------------------------------------------------

    def _fit(self, fits: Fits, costs: dict, start: Run, data: Data, at: str) -> None:
        """Predict all subsets, and write their rows and the record."""
        began, cpu = time.time(), time.process_time()
        given = self.options.strength
        chosen = calibrate(fits, self.truth) if given is None else Calibration(given, "given")
        predicted = {members: fits.predict(members, [chosen.steps]) for members in self.subsets}
        costs["fits"] = {"seconds": time.time() - began, "cpu_seconds": time.process_time() - cpu, "flops": sum(
            4 * part.features.size * chosen.steps
            for members in self.subsets for item in members for part in fits.train[item])}
        name = f"estimate-s{start.args.seed}"
        record = start.describe(data) | {
            "run_id": name, "status": "estimated", "seconds": round(costs["fits"]["seconds"] / len(self.subsets), 4)}
        config_hash = short_hash([start.experiment.config_hash, self.options.project_dim, given])
        same = {"run_id": name, "split": "valid", "config_hash": config_hash}
        rows = [row | same for members, by_item in predicted.items()
                for row in self._rows(members, by_item, chosen, start, record, data)]
        self.results.write_run(name, rows, record | {"estimate": vars(self.options) | {
            "strength": chosen.steps, "chosen_by": chosen.chosen_by, "item_scales": chosen.scales, "costs": costs,
            "subsets": len(self.subsets), "start": at,
            "calibrated_on": [" ".join(members) for members in sorted(self.truth)]}})

    def _rows(self, members: Subset, by_item: dict, chosen: Calibration, start: Run, record: dict, data: Data):
        """The rows of one subset: of each member the loss, and what answer choices allow to tell beside it."""
        for item in sorted(self.experiment.items, key=lambda item: natural_order(item.name)):
            if item.name not in by_item:
                continue
            loss, right = by_item[item.name]
            metric = self.experiment.loss_metric(item)
            values = {metric: loss[0] * chosen.scale(item.name)}
            if item.has_choices:
                names = ("choice_accuracy",) if metric == "choice_loss" else ("exact_match", "accuracy")
                values |= {name: right[0] for name in names if name in self.experiment.metrics(item)}
            count = sum(len(entry.dataset) for entry in data["validation"][item.name])
            for metric, value in values.items():
                yield start.row(item, record) | {
                    "trained_on": " ".join(sorted(members, key=natural_order)),
                    "trained_hash": trained_hash(start.content, members), "metric": metric,
                    "value": round(float(value), 6), "n_examples": count}

    def _say_what_next(self) -> None:
        name = self.results.save_name
        choices = all(item.has_choices for item in self.experiment.items)
        print(f"written: {len(self.subsets)} estimated subsets in {self.results.runs_csv}. Next:\n"
              f"  python -m src.cluster --save_name {name}{'' if choices else ' --metric loss'}\n"
              f"  python -m src.estimate compare --save_name {self.save_name}")
