"""An experiment: all that one training command asks for, in one bundle that runs and estimates take.

It makes what they need: the tokenizer, the rows of a seed, the model; and it knows what names its results.
"""

import copy
import dataclasses
import functools
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from src.cli import InputError, did_you_mean
from src.files import check_writable
from src.identity import config_hash, short_hash
from src.names import MAX_NAME
from src.results import Results
from src.tasks.rows import Selection, select_rows
from src.tasks.task import Item
from src.training.flags import DataArguments, ModelArguments, ResultArguments, TrainingArguments
from src.training.model import load_model, load_tokenizer
from src.training.tokenised import Prepared, Preparer

log = logging.getLogger(__name__)
Data = dict[str, dict[str, list[Prepared]]]  # role -> item name -> one entry per template


@dataclass(frozen=True)
class Experiment:
    """What is trained on what, and how: the items and the four groups of flags."""

    items: tuple[Item, ...]
    data: DataArguments
    model: ModelArguments
    result: ResultArguments
    training: TrainingArguments

    @classmethod
    def from_flags(cls, data: DataArguments, model: ModelArguments, result: ResultArguments,
                   training: TrainingArguments) -> "Experiment":
        """The experiment of a command line, as `flags.parse` gives it; raise InputError for unknown tasks."""
        return cls(tuple(data.items()), data, model, result, training)

    @property
    def names(self) -> list[str]:
        """Names of the items, as given."""
        return [item.name for item in self.items]

    @property
    def save_name(self) -> str:
        """--save_name, or `<tasks>_<templates>_<model>`: too long for a file name, it is cut and ends in a hash."""
        tasks = "-".join(dict.fromkeys(item.task.name for item in self.items))
        name = f"{tasks}_{'-'.join(map(str, self.data.indices()))}_{Path(self.model.model_name_or_path).name}"
        if len(name.encode()) > MAX_NAME:
            name = f"{name[:MAX_NAME // 2]}_{short_hash(name)}"
        return self.result.save_name or name

    @property
    def results(self) -> Results:
        return Results(self.result.results_dir, self.save_name)

    @property
    def seeds(self) -> range:
        return range(self.training.seed, self.training.seed + self.result.runs)

    def of_seed(self, seed: int) -> "Experiment":
        """The same with another --seed, in training arguments of its own; tokenizer and cache are shared."""
        other = copy.copy(self)
        object.__setattr__(other, "training", copy.copy(self.training))
        other.training.seed = seed
        return other

    def settings(self) -> dict:
        """Every setting by the name of its flag, and the number of processes."""
        groups = [dataclasses.asdict(group) for group in (self.data, self.model)]
        return groups[0] | groups[1] | self.training.to_sanitized_dict() | {"processes": self.training.world_size}

    @functools.cached_property
    def config_hash(self) -> str:
        return config_hash(self.settings())

    # ---- what it makes ---------------------------------------------------------------------------------------------

    @functools.cached_property
    def tokenizer(self):
        return load_tokenizer(self.model, self.data.cache_dir)

    @functools.cached_property
    def preparer(self) -> Preparer:
        return Preparer(self.tokenizer, self.data.cache_dir, self.data.max_source_length, self.data.max_target_length,
                        self.data.overwrite_cache)

    def load_model(self):
        """The model with its adapter, in float32, its new weights drawn by the seed last set."""
        return load_model(self.model, self.data.cache_dir, len(self.tokenizer))

    def rows(self) -> tuple[Data, list[Selection]]:
        """Select and tokenise the rows of every role asked for; also return the selections, task by task."""
        data_args, args = self.data, self.training
        roles = [role for role, wanted in (("train", args.do_train), ("validation", args.do_eval),
                                           ("test", args.do_predict)) if wanted]
        data: Data = {role: {} for role in roles}
        selections = []
        for item in self.items:
            selected = select_rows(item.task, roles, data_args.data_dir, data_args.cache_dir,
                                   args.seed if args.data_seed is None else args.data_seed,
                                   data_args.downsample, data_args.validation_from_train)
            selections += selected.values()
            for role in roles:
                data[role][item.name] = [self.preparer.prepare(selected[role], t) for t in item.templates]
        return data, selections

    # ---- checks ----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise InputError for what can be known to be wrong before a model is loaded or anything is written."""
        _check_best_metric(self.items, self.training.metric_for_best_model)
        self.results.check_writable()
        check_writable(f"--output_dir {self.training.output_dir}", Path(self.training.output_dir).absolute())


def _check_best_metric(items: Iterable[Item], name: str | None) -> None:
    if name is None:
        return
    allowed = {f"eval_{metric}" for item in items for metric in item.metrics}
    allowed |= {f"eval_{name}_{metric}" for item in items for metric in item.metrics
                for name in (item.name, *(template.item for template in item.templates))}
    if f"eval_{name.removeprefix('eval_')}" not in allowed:
        raise InputError(f"--metric_for_best_model {name}: no such metric among those of the chosen tasks; "
                         f"{did_you_mean(name, sorted(allowed, key=lambda n: (n.count('_'), n)), shown=len(allowed))}")


def report_data(data: Data) -> None:
    """Log the mix: rows, tokens and truncation of each item, role by role."""
    for role, by_item in data.items():
        for item, entries in by_item.items():
            total = {name: sum(entry.counts[name] for entry in entries) for name in entries[0].counts}
            notes = [f"{total[name]} {what}" for name, what in (
                ("cut_inputs", "inputs cut to --max_source_length"),
                ("cut_targets", "targets cut to --max_target_length"),
                ("empty_rows", "rows without text left out")) if total[name]]
            log.info("%-10s %-24s %7d rows  %9d input tokens  %8d target tokens  from %s%s", role, item, total["rows"],
                     total["input_tokens"], total["target_tokens"], entries[0].source,
                     f"  ({', '.join(notes)})" if notes else "")
