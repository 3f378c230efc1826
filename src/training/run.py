"""Do an experiment: for each seed train, from start or from the last checkpoint, evaluate every item, record."""

import contextlib
import csv
import gc
import io
import json
import logging
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import transformers
from accelerate.utils import broadcast_object_list

from src.claims import held
from src.cli import InputError, print_table
from src.files import write_whole
from src.identity import short_hash, trained_hash
from src.names import MAX_NAME, check_name, natural_order, plain_name
from src.results import SWEEP_MERGES, Results, score_of, summary
from src.tasks.task import Item
from src.training.check import check_and_describe
from src.training.checkpoints import is_at_its_end, last_checkpoint
from src.training.experiment import ROLES, Data, Experiment, report_data, splits
from src.training.flags import TrainingArguments
from src.training.held_out import NOTHING, HeldOut, prepare
from src.training.record import describe, log_file, name_folder, peak_memory_mb, reports, set_up_logging, title
from src.training.tokenised import mix
from src.training.trainer import Trainer, TrainingFailed

log = logging.getLogger(__name__)


def run_experiment(experiment: Experiment) -> int:
    """Train and evaluate the items together, once for each seed, and write the results.

    Returns:
        0, or 1 where a run failed (recorded as such; the other runs are done all the same).

    Raises:
        InputError: bad input, found before a model is loaded and a result is written.
    """
    args = experiment.training
    set_up_logging(args)
    gc.collect()
    gc.freeze()  # the imported libraries' objects need no further looking through: a quarter of a short run
    if experiment.result.check:
        return check_and_describe(experiment)
    experiment.check()
    if experiment.data.pad_to_max_length and not args.torch_compile:
        log.info("--pad_to_max_length: padding each batch to its longest row instead (the loss is the same, the cost a "
                 "fraction); --torch_compile honours it")
    completed, runs = True, []
    for seed in experiment.seeds:
        of_seed = experiment.of_seed(seed)
        selections = of_seed.selections()
        data = of_seed.rows(selections)
        if seed == args.seed:
            report_data(data)
        run = Run(of_seed, of_seed.content(selections), prepare(of_seed))
        completed &= run.execute(data)
        runs.append(run.run_id)
        if args.process_index == 0:  # also where the run was completed: it may have ended before this
            experiment.results.merge_unless_in_sweep()
    if args.process_index == 0:
        _print_results(experiment.results, runs, run.trained_on)
    return 0 if completed else 1


class Run:
    """One training with one seed, and its rows and record. Its checkpoints are in `args.output_dir`, its own folder."""

    def __init__(self, experiment: Experiment, content: dict[str, str], held_out: HeldOut = NOTHING):
        """`content` is that of `experiment.content`: a hash of each item."""
        self.experiment, self.results, self.args = experiment, experiment.results, experiment.training
        self.content, self.held_out = content, held_out
        self.trained_on = " ".join(sorted(experiment.names, key=natural_order)) if self.args.do_train else "none"
        name = self.args.run_name or (f"{plain_name(self.results.save_name, MAX_NAME // 2)}-"
                                      f"{short_hash([experiment.config_hash, sorted(content.items())])}")
        check_name("--run_name", name)
        self.run_id = f"{name}-s{self.args.seed}"
        self.args.run_name = title(sorted(experiment.names, key=natural_order), self.run_id)  # in W&B and the like
        self.args.output_dir = str(Path(self.args.output_dir) / self.run_id)
        self.predictions: list[dict] = []  # of the last evaluations, with --save_predictions
        self.wanted = {(split, item.name, metric) for split in splits(experiment)
                       for item in (*experiment.items, *held_out.items) for metric in experiment.metrics(item)}
        self.before: list[dict[str, str]] = []  # rows that were there
        self.was_completed = False  # what is there stays until there is more

    def execute(self, data: Data) -> bool:
        """Do the run, or what is missing of it; return whether it is completed. A failure is recorded, with its
        traceback in the log; what was completed before stays then, as rows do that are not asked for now.

        Raises:
            InputError: another process is doing it, or bad input that shows only now.
        """
        with _only_one(f"{self.run_id} is being trained already, by", Path(f"{self.args.output_dir}.claim"), self.args):
            return self._execute(data)

    def _execute(self, data: Data) -> bool:
        args, results = self.args, self.results
        with args.main_process_first(desc="results", local=False):
            if args.overwrite_output_dir and args.process_index == 0:
                shutil.rmtree(args.output_dir, ignore_errors=True)
            elif not args.overwrite_output_dir:
                self.before = results.rows_of(self.run_id)
                self.was_completed = results.is_completed(self.run_id)
                if not (missing := self._missing()):
                    log.info("%s is completed already; --overwrite_output_dir does it again", self.run_id)
                    return True
                if self.was_completed:
                    log.info("%s is completed, but %s was not asked for then", self.run_id, missing)
        record, refusal = self.describe(data), None
        self._write_record(record)
        start, cpu = time.time(), time.process_time()
        with log_file(results.part(self.run_id, "log"), args), reports(args):
            log.info("%s: seed %d, trained on %s", self.run_id, args.seed, self.trained_on)
            try:
                scores, record["training"] = self._train_and_evaluate(data)
                values, status = _values(self.experiment, self.held_out, scores, data), "completed"
            except KeyboardInterrupt:
                self._write_record(record | {"status": "interrupted", "seconds": round(time.time() - start, 2)})
                raise
            except Exception as error:
                log.error("%s failed: %s: %s", self.run_id, type(error).__name__, error)
                logging.getLogger("file").error(traceback.format_exc())
                refusal = error if isinstance(error, InputError) else None
                scores, status, record["error"] = {}, "failed", f"{type(error).__name__}: {error}"
                values = _values(self.experiment, self.held_out, {}, data)
        record |= {"status": status, "seconds": round(time.time() - start, 2),
                   "cpu_seconds": round(time.process_time() - cpu, 2), "peak_memory_mb": peak_memory_mb(),
                   "scores": scores}
        if args.process_index == 0 and (status == "completed" or not self.was_completed):
            if self.predictions:
                write_whole(results.part(self.run_id, "predictions.jsonl"), "".join(
                    json.dumps(row, ensure_ascii=False) + "\n" for row in self.predictions))
            rows = [self.row(item, record) | {"split": split, "metric": metric, "value": value, "n_examples": count}
                    for split, item, metric, value, count in values]
            kept = [row for row in self.before if score_of(row) not in self.wanted]
            results.write_part(self.run_id, [*kept, *rows], record)
        if refusal:
            raise refusal
        return status == "completed"

    def _missing(self) -> str:
        """What the run's results lack of what is asked for, in words; empty where it is completed."""
        if lacking := self.wanted - set(map(score_of, self.before)):
            return " ".join(min(lacking))
        if not self.before and not self.results.is_completed(self.run_id):
            return "its record"
        no_predictions = self.experiment.result.save_predictions and not self.results.part(
            self.run_id, "predictions.jsonl").exists()
        return "--save_predictions" if no_predictions and self.wanted else ""

    def _train_and_evaluate(self, data: Data) -> tuple[dict[str, dict[str, float]], dict]:
        args, data_args = self.args, self.experiment.data
        transformers.set_seed(args.seed)
        model = self.experiment.load_model()
        train_rows = None
        if args.do_train:
            entries = [entry for of_item in data["train"].values() for entry in of_item]
            train_rows = mix(entries, data_args.mixing, data_args.mixing_temperature, args.seed)
        trainer = Trainer(model, self.experiment.family, args, data_args, train_rows, data.get("validation"),
                          self.experiment.result.save_predictions)
        name_folder(trainer.callback_handler.callbacks, args, self.results.folder / "tensorboard")
        training = {"trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
        if args.do_train:
            checkpoint = last_checkpoint(args) or args.resume_from_checkpoint
            if checkpoint and is_at_its_end(checkpoint, args):
                log.info("training is at its end in %s, evaluating", checkpoint)
                trainer.take_up(checkpoint)
                training["loss"] = None
            else:
                if checkpoint:
                    log.info("going on from %s", checkpoint)
                elif self.was_completed:
                    log.info("its checkpoint was not kept, so it is trained again")
                training["loss"] = trainer.train(resume_from_checkpoint=checkpoint).training_loss
            training |= {"steps": trainer.state.global_step, "resumed_from": checkpoint,
                         "best_step": trainer.state.best_global_step, "best_metric": trainer.state.best_metric,
                         "log": trainer.state.log_history}
        if trainer.state.best_global_step and args.load_best_model_at_end:
            log.info("evaluating the best model, that of step %d", trainer.state.best_global_step)
        scores = {}
        for rows, prefix in ((data, "eval"), (self.held_out.data, "held_out")):
            for role, sets in rows.items():
                if role in ROLES:
                    found = trainer.evaluate(sets, metric_key_prefix=prefix)
                    scores[ROLES[role]] = scores.get(ROLES[role], {}) | found
                    self.predictions += [{"split": ROLES[role], **row} for row in trainer.predictions]
        return scores, training

    def row(self, item: Item, record: dict) -> dict:
        """The columns of a result that the run, its record and the item decide."""
        return {"run_id": self.run_id, "status": record["status"], "seed": self.args.seed, "item": item.name,
                "template": " ".join(t.name for t in item.templates),
                "template_hash": " ".join(t.hash for t in item.templates),
                "content_hash": (self.content | self.held_out.content)[item.name], "trained_on": self.trained_on,
                "trained_hash": trained_hash(self.content, self.content) if self.args.do_train else "",
                "model": self.experiment.model.model_name_or_path, "steps": record.get("training", {}).get("steps", ""),
                "seconds": record.get("seconds", ""), "commit": record["commit"],
                "config_hash": self.experiment.config_hash}

    def describe(self, data: Data) -> dict:
        """The record of a run that begins: settings, versions, device, commit, rows."""
        return {"run_id": self.run_id, "status": "running", "seed": self.args.seed, "trained_on": self.trained_on,
                "config_hash": self.experiment.config_hash} | describe(self.args) | {
            "data": _counts(data), "held_out": _counts(self.held_out.data),
            "arguments": self.experiment.settings()}

    def _write_record(self, record: dict) -> None:
        if self.args.process_index == 0 and not self.was_completed:
            self.results.write_record(self.run_id, record)


@contextlib.contextmanager
def _only_one(what: str, claim: Path, args: TrainingArguments) -> Iterator[None]:
    """Hold the claim meanwhile, the first process for all of them; where another training has it, raise InputError in
    each. A child of a sweep, whose subset is claimed, fails then as one that may be tried again.
    """
    with contextlib.ExitStack() as stack:
        refusal = [None]
        if args.process_index == 0:
            try:
                stack.enter_context(held(claim, what))
            except InputError as error:
                refusal = [str(error)]
        if broadcast_object_list(refusal)[0]:
            raise (TrainingFailed if SWEEP_MERGES in os.environ else InputError)(refusal[0])
        yield


def _values(experiment: Experiment, held_out: HeldOut, scores: dict, data: Data) -> list[tuple]:
    """(split, item, metric, value, number of rows) of each result; one without metric per item of a failed run."""
    found = []
    for rows, items, prefix in ((data, experiment.items, "eval"), (held_out.data, held_out.items, "held_out")):
        for role, split in ROLES.items():
            for item in items if role in rows else ():
                count = sum(len(entry.dataset) for entry in rows[role][item.name])
                if split not in scores:
                    found.append((split, item, "", "", count))
                    continue
                found += [(split, item, metric, round(scores[split][f"{prefix}_{item.name}_{metric}"], 6), count)
                          for metric in experiment.metrics(item)]
    return found


def _counts(data: Data) -> dict:
    return {role: {item: {"source": entries[0].source, **{entry.template.item: entry.counts for entry in entries}}
                   for item, entries in by_item.items()} for role, by_item in data.items()}


def _print_results(results: Results, runs: list[str], trained_on: str) -> None:
    """Print the scores of the runs, means over seeds, and where the files are."""
    rows = [row for run_id in runs for row in results.rows_of(run_id)]
    for split in ROLES.values():
        means = list(csv.DictReader(io.StringIO(summary(rows, split))))
        if not means:
            continue
        metrics = [name for name in means[0] if name.startswith("eval_") and not name.endswith("_std")]
        cells = [[row["Task"], *(row[m] and f"{float(row[m]):.4f}" + (row[m + "_std"] and (
            f" ± {float(row[m + '_std']):.4f}")) for m in metrics)] for row in means]
        print(f"\n{split}, mean over {means[0]['runs']} run(s), trained on: {trained_on}")
        print_table(["Task", *metrics], cells, box=None, pad_edge=False)
        print(results.summary_csv(split))
    print(f"\nall runs: {results.runs_csv}\nrecords and logs: {results.folder / 'runs'}/")
