"""One experiment: for each seed prepare the rows, train, evaluate every item, record."""

import copy
import csv
import dataclasses
import gc
import importlib.metadata
import logging
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers
from transformers.trainer_utils import get_last_checkpoint

from src.cli import InputError, did_you_mean
from src.files import check_writable
from src.identity import config_hash, short_hash
from src.names import MAX_NAME, check_name, natural_order, plain_name
from src.results import Results
from src.tasks.rows import Selection, select_rows
from src.tasks.task import Item
from src.tasks.template import LEFT_OUT
from src.training.flags import DataArguments, ModelArguments, ResultArguments, TrainingArguments
from src.training.model import load_model, load_tokenizer
from src.training.record import PACKAGES, _commit, _log_file, _peak_memory_mb, set_up_logging
from src.training.tokenised import Prepared, Preparer, mix
from src.training.trainer import Trainer

log = logging.getLogger(__name__)
ROLES = {"validation": "valid", "test": "test"}  # role of the rows -> name of the split in the results


def default_save_name(names: Sequence[str], indices: Sequence[int], model: str) -> str:
    """`<task>_<templates>_<model>`; where that is too long for a file name, cut and made unique by a hash."""
    name = f"{'-'.join(names)}_{'-'.join(map(str, indices))}_{Path(model).name}"
    too_long = len(name.encode()) > MAX_NAME
    return f"{plain_name(name, MAX_NAME // 2)}_{short_hash(name)}" if too_long else plain_name(name)


def run_experiment(items: Sequence[Item], default_name: str, data_args: DataArguments, model_args: ModelArguments,
                   result_args: ResultArguments, training_args: TrainingArguments) -> int:
    """Train and evaluate `items` together, once for each seed, and write the results.

    Args:
        default_name: the results' name where --save_name gives none.

    Returns:
        0, or 1 where a run failed (recorded as such; the other runs are done all the same).

    Raises:
        InputError: bad input, found before a model is loaded and a result is written.
    """
    set_up_logging(training_args)
    gc.collect()
    gc.freeze()  # the imported libraries' objects need no further looking through: a quarter of a short run
    results = Results(result_args.results_dir, result_args.save_name or default_name)
    _check_best_metric(items, training_args)
    results.check_writable()
    check_writable(f"--output_dir {training_args.output_dir}", Path(training_args.output_dir).absolute())
    if data_args.pad_to_max_length and not training_args.torch_compile:
        log.info("--pad_to_max_length: padding each batch to its longest row instead (the loss is the same, the cost a "
                 "fraction); --torch_compile honours it")
    tokenizer = load_tokenizer(model_args, data_args.cache_dir)
    preparer = Preparer(tokenizer, data_args.cache_dir, data_args.max_source_length, data_args.max_target_length,
                        data_args.overwrite_cache)

    completed = True
    for seed in range(training_args.seed, training_args.seed + result_args.runs):
        args = copy.copy(training_args)
        args.seed = seed
        data, selections = prepare_data(items, preparer, data_args, args)
        if seed == training_args.seed:
            report_data(data)
        run = Run(items, results, data_args, model_args, args, selections)
        completed &= run.execute(tokenizer, data)
    _print_results(results, run)
    return 0 if completed else 1


# ---- data -----------------------------------------------------------------------------------------------------------


Data = dict[str, dict[str, list[Prepared]]]  # role -> item name -> one entry per template


def prepare_data(items: Sequence[Item], preparer: Preparer, data_args: DataArguments,
                 args: TrainingArguments) -> tuple[Data, list[Selection]]:
    """Select and tokenise the rows of every role that `args` ask for; also return the selections, task by task."""
    roles = [role for role, wanted in (("train", args.do_train), ("validation", args.do_eval),
                                       ("test", args.do_predict)) if wanted]
    data: Data = {role: {} for role in roles}
    selections = []
    for item in items:
        selected = select_rows(item.task, roles, data_args.data_dir, data_args.cache_dir,
                               args.seed if args.data_seed is None else args.data_seed,
                               data_args.downsample, data_args.validation_from_train)
        selections += selected.values()
        for role in roles:
            data[role][item.name] = [preparer.prepare(selected[role], template) for template in item.templates]
    return data, selections


def report_data(data: Data) -> None:
    """Log the mix: rows, tokens and truncation of each item, role by role."""
    for role, by_item in data.items():
        for item, entries in by_item.items():
            total = {name: sum(entry.counts[name] for entry in entries) for name in entries[0].counts}
            notes = [f"{total[name]} {what}" for name, what in (
                ("shortened_inputs", "inputs shortened to --max_source_length"),
                ("cut_inputs", "inputs cut to --max_source_length"),
                ("cut_targets", "targets cut to --max_target_length"),
                *((name, f"rows {what} left out") for name, what in LEFT_OUT.items())) if total[name]]
            log.info("%-10s %-24s %7d rows  %9d input tokens  %8d target tokens  from %s%s", role, item, total["rows"],
                     total["input_tokens"], total["target_tokens"], entries[0].source,
                     f"  ({', '.join(notes)})" if notes else "")


# ---- one run --------------------------------------------------------------------------------------------------------


class Run:
    """One training with one seed, from start or from its last checkpoint, and its rows and record.

    Its checkpoints are in `args.output_dir`, a folder of its own.
    """

    def __init__(self, items, results, data_args, model_args, args, selections):
        self.items, self.results = items, results
        self.data_args, self.model_args, self.args = data_args, model_args, args
        names = sorted((item.name for item in items), key=natural_order)
        self.trained_on = " ".join(names) if args.do_train else "none"
        self.config_hash = config_hash(data_args, model_args, args)
        data = [[item.name, *(template.hash for template in item.templates)] for item in items]
        data += [[selection.task.name, selection.role, selection.rows.fingerprint] for selection in selections]
        name = args.run_name or f"{plain_name(results.save_name, MAX_NAME // 2)}-{short_hash([self.config_hash, data])}"
        check_name("--run_name", name)
        self.run_id = f"{name}-s{args.seed}"
        args.output_dir = str(Path(args.output_dir) / self.run_id)

    def execute(self, tokenizer, data: Data) -> bool:
        """Do the run; return whether it is completed. A failure is recorded, with its traceback in the log."""
        args, results = self.args, self.results
        with args.main_process_first(desc="results", local=False):
            if args.overwrite_output_dir and args.process_index == 0:
                shutil.rmtree(args.output_dir, ignore_errors=True)
            elif results.is_completed(self.run_id) and not args.overwrite_output_dir:
                log.info("%s is completed already; --overwrite_output_dir does it again", self.run_id)
                return True
        record = self.describe(data)
        self._write_record(record)
        start, cpu, rows = time.time(), time.process_time(), []
        with _log_file(results.part(self.run_id, "log"), args):
            log.info("%s: seed %d, trained on %s", self.run_id, args.seed, self.trained_on)
            try:
                scores, record["training"] = self._train_and_evaluate(tokenizer, data)
                values = list(self._values(scores, data))
                status = "completed"
            except KeyboardInterrupt:
                self._write_record(record | {"status": "interrupted", "seconds": round(time.time() - start, 2)})
                raise
            except Exception as error:
                log.error("%s failed: %s: %s", self.run_id, type(error).__name__, error)
                logging.getLogger("file").error(traceback.format_exc())
                scores, status, record["error"] = {}, "failed", f"{type(error).__name__}: {error}"
                values = list(self._values({}, data))
        record |= {"status": status, "seconds": round(time.time() - start, 2),
                   "cpu_seconds": round(time.process_time() - cpu, 2), "peak_memory_mb": _peak_memory_mb(),
                   "scores": scores}
        for split, item, metric, value, count in values:
            rows.append(self.row(item) | {
                "run_id": self.run_id, "status": status, "trained_on": self.trained_on, "split": split,
                "metric": metric, "value": value,
                "n_examples": count, "steps": record.get("training", {}).get("steps", ""),
                "seconds": record["seconds"], "commit": record["commit"], "config_hash": self.config_hash})
        if args.process_index == 0:
            results.write_run(self.run_id, rows, record)
        return status == "completed"

    def _train_and_evaluate(self, tokenizer, data: Data) -> tuple[dict[str, dict[str, float]], dict]:
        args = self.args
        transformers.set_seed(args.seed)
        model = load_model(self.model_args, self.data_args.cache_dir, len(tokenizer))
        train_rows = None
        if args.do_train:
            entries = [entry for of_item in data["train"].values() for entry in of_item]
            train_rows = mix(entries, getattr(self.data_args, "mixing", "proportional"),
                             getattr(self.data_args, "mixing_temperature", 1.0), args.seed)
        trainer = Trainer(model, tokenizer, args, self.data_args, train_rows, data.get("validation"))
        training = {"trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
        if args.do_train:
            checkpoint = args.resume_from_checkpoint or last_checkpoint(args)
            if checkpoint:
                log.info("going on from %s", checkpoint)
            output = trainer.train(resume_from_checkpoint=checkpoint)
            training |= {"steps": output.global_step, "loss": output.training_loss, "resumed_from": checkpoint,
                         "best_step": trainer.state.best_global_step, "best_metric": trainer.state.best_metric,
                         "log": trainer.state.log_history}
        if trainer.state.best_global_step and args.load_best_model_at_end:
            log.info("evaluating the best model, that of step %d", trainer.state.best_global_step)
        scores = {ROLES[role]: trainer.evaluate(sets) for role, sets in data.items() if role in ROLES}
        return scores, training

    def _values(self, scores, data: Data) -> Iterator[tuple]:
        """(split, item, metric, value, number of rows) of each result; one without metric per item of a failed run."""
        for role, sets in data.items():
            if role not in ROLES:
                continue
            split = ROLES[role]
            for item in self.items:
                count = sum(len(entry.dataset) for entry in sets[item.name])
                if split not in scores:
                    yield split, item, "", "", count
                    continue
                for metric in item.metrics:
                    yield split, item, metric, round(scores[split][f"eval_{item.name}_{metric}"], 6), count

    def row(self, item: Item) -> dict:
        """The columns of a result that the run and the item decide."""
        return {"seed": self.args.seed, "item": item.name, "template": " ".join(t.name for t in item.templates),
                "template_hash": " ".join(t.hash for t in item.templates), "model": self.model_args.model_name_or_path}

    def describe(self, data: Data) -> dict:
        """The record of a run that begins: arguments, versions, device, commit, rows."""
        commit, dirty = _commit()
        arguments = {name: value for group in (self.data_args, self.model_args) for name, value
                     in dataclasses.asdict(group).items()} | self.args.to_sanitized_dict()
        return {
            "run_id": self.run_id, "status": "running", "seed": self.args.seed, "trained_on": self.trained_on,
            "config_hash": self.config_hash, "command": sys.argv, "commit": commit, "dirty": dirty,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": platform.node(),
            "device": torch.cuda.get_device_name() if self.args.device.type == "cuda" else "cpu",
            "processes": self.args.world_size, "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "data": {role: {item: {"source": entries[0].source, **{entry.template.item: entry.counts
                                                                   for entry in entries}}
                            for item, entries in by_item.items()} for role, by_item in data.items()},
            "arguments": arguments,
        }

    def _write_record(self, record: dict) -> None:
        if self.args.process_index == 0:
            self.results.write_record(self.run_id, record)


def last_checkpoint(args: TrainingArguments) -> str | None:
    """The newest whole checkpoint; one that was being written when the process died is removed."""
    while Path(args.output_dir).is_dir() and (checkpoint := get_last_checkpoint(args.output_dir)):
        if (Path(checkpoint) / "trainer_state.json").exists():  # written last
            return checkpoint
        with args.main_process_first(local=False):
            shutil.rmtree(checkpoint, ignore_errors=True)
    return None


# ---- checks and output ----------------------------------------------------------------------------------------------


def _check_best_metric(items: Sequence[Item], args: TrainingArguments) -> None:
    if args.metric_for_best_model is None:
        return
    allowed = {f"eval_{metric}" for item in items for metric in item.metrics}
    allowed |= {f"eval_{name}_{metric}" for item in items for metric in item.metrics
                for name in (item.name, *(template.item for template in item.templates))}
    name = args.metric_for_best_model
    if f"eval_{name.removeprefix('eval_')}" not in allowed:
        raise InputError(f"--metric_for_best_model {name}: no such metric among those of the chosen tasks; "
                         f"{did_you_mean(name, sorted(allowed, key=lambda n: (n.count('_'), n)), shown=len(allowed))}")


def _print_results(results: Results, run: Run) -> None:
    """Print this experiment's lines of the CSV files as a table, and where the files are."""
    if run.args.process_index != 0:
        return
    from rich.console import Console
    from rich.table import Table

    for split in ROLES.values():
        path = results.summary_csv(split)
        if not path.exists():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file)
                    if (row["config_hash"], row["Trained on"]) == (run.config_hash, run.trained_on)]
        metrics = [name for name in (rows[0] if rows else {}) if name.startswith("eval_")
                   and not name.endswith("_std") and any(row[name] for row in rows)]
        table = Table("Task", *metrics, box=None, pad_edge=False)
        for row in rows:
            cells = (f"{float(row[m]):.4f}" + (f" ± {float(row[m + '_std']):.4f}" if row[m + "_std"] else "")
                     if row[m] else "" for m in metrics)
            table.add_row(row["Task"], *cells)
        print(f"\n{split}, mean over {rows[0]['runs'] if rows else 0} run(s), trained on: {run.trained_on}")
        console = Console()
        Console(width=None if console.is_terminal else 200).print(table)
        print(path)
    print(f"\nall runs: {results.runs_csv}\nrecords and logs: {results.folder / 'runs'}/")
