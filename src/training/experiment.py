"""An experiment: all that one training command asks for, in one bundle that runs and estimates take.

It makes what they need: the tokenizer, the rows of a seed, the model; and it knows what names its results.
"""

import copy
import dataclasses
import functools
import logging
from dataclasses import dataclass
from pathlib import Path

from transformers.utils.hub import cached_file, extract_commit_hash

from src.cli import InputError, did_you_mean, warn
from src.files import check_writable
from src.identity import model_content, settings_that_count, short_hash
from src.metrics import CHOICE_METRICS
from src.names import MAX_NAME, plain_name
from src.results import Results
from src.tasks.rows import Selection, select_rows
from src.tasks.task import Item
from src.tasks.template import LEFT_OUT
from src.training.families import Family
from src.training.flags import DataArguments, ModelArguments, ResultArguments, TrainingArguments
from src.training.model import check_model, load_family, load_model
from src.training.tokenised import Prepared, Preparer

log = logging.getLogger(__name__)
ROLES = {"validation": "valid", "test": "test"}  # role of evaluated rows -> name of the split in the results
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
        if len(name.encode()) > MAX_NAME - len("_estimated"):  # of the estimates that may stand beside it
            name = f"{plain_name(name, MAX_NAME // 2)}_{short_hash(name)}"
        return self.result.save_name or plain_name(name)

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
        return groups[0] | groups[1] | self.training.to_dict() | {"processes": self.training.world_size}

    @functools.cached_property
    def model_content(self) -> str:
        """What the model's name leads to: a hash of a folder's files, or the name on the hub with its commit."""
        name, cache_dir = self.model.model_name_or_path, Path(self.data.cache_dir)
        if Path(name).is_dir():
            return model_content(Path(name), cache_dir)
        config = cached_file(name, "config.json", revision=self.model.model_revision, cache_dir=cache_dir / "hub")
        return f"{name}@{extract_commit_hash(config, None)}"

    @functools.cached_property
    def identity(self) -> dict:
        """The settings that count, the model by its content, and what it reads around a text."""
        return settings_that_count(self.settings() | {"model_name_or_path": self.model_content,
                                                      "around_text": self.family.key})

    @property
    def config_hash(self) -> str:
        return short_hash(self.identity)

    # ---- what it makes ---------------------------------------------------------------------------------------------

    @functools.cached_property
    def family(self) -> Family:
        return load_family(self.model, self.data.cache_dir, self.data.source_prefix)

    @functools.cached_property
    def preparer(self) -> Preparer:
        return Preparer(self.family, self.data.cache_dir, self.data.max_source_length, self.data.max_target_length,
                        self.data.overwrite_cache)

    def load_model(self):
        """The model with its adapter, its new weights drawn by the seed last set."""
        return load_model(self.model, self.data.cache_dir, self.family)

    @property
    def roles(self) -> list[str]:
        """Roles of the rows that are asked for."""
        args = self.training
        return [role for role, wanted in (("train", args.do_train), ("validation", args.do_eval),
                                          ("test", args.do_predict)) if wanted]

    def selections(self) -> dict[str, dict[str, Selection]]:
        """The rows of each item by role: of the roles asked for and, as far as there are any, of train and validation.

        Raises:
            InputError: an item lacks the rows of a role that is asked for.
        """
        data_args, args, found = self.data, self.training, {}
        for item in self.items:
            select = functools.partial(
                select_rows, item.task, data_dir=data_args.data_dir, cache_dir=data_args.cache_dir,
                seed=args.seed if args.data_seed is None else args.data_seed, downsample=data_args.downsample,
                validation_from_train=data_args.validation_from_train)
            try:
                found[item.name] = select(roles=list(dict.fromkeys(["train", "validation", *self.roles])))
            except InputError:  # where only some are asked for, only those must be there
                found[item.name] = select(roles=self.roles)
        return found

    def content(self, selections: dict[str, dict[str, Selection]]) -> dict[str, str]:
        """A hash of each item: its templates, and its rows for training and validation at their source, none drawn."""
        return {item.name: short_hash([
            [template.hash for template in item.templates],
            [[role, selected[role].rows.fingerprint, selected[role].slice_of and selected[role].slice_of.fingerprint]
             for role in ("train", "validation") if role in selected],
        ]) for item, selected in ((item, selections[item.name]) for item in self.items)}

    def metrics(self, item: Item) -> tuple[str, ...]:
        """Names of the metrics that an evaluation of the item gives."""
        names = (*item.metrics, "loss", "gen_len") if self.training.predict_with_generate else ("loss",)
        return names + CHOICE_METRICS if self.training.score_choices and item.has_choices else names

    def loss_metric(self, item: Item) -> str:
        """The metric that is an item's loss: that among its answer choices where they are scored, else of a token."""
        return "choice_loss" if "choice_loss" in self.metrics(item) else "loss"

    def rows(self, selections: dict[str, dict[str, Selection]]) -> Data:
        """Tokenise the rows of every role that is asked for; raise InputError where choices cannot be scored."""
        data = {role: {item.name: [self.preparer.prepare(selections[item.name][role], template)
                                   for template in item.templates] for item in self.items} for role in self.roles}
        if self.training.score_choices:
            _check_gold(data)
            _check_lengths(self, max(entry.counts["longest_choice"] for by_item in data.values()
                                     for entries in by_item.values() for entry in entries))
        return data

    # ---- checks ----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise InputError for what can be known to be wrong before a model is loaded or anything is written."""
        if self.training.score_choices and not any(item.has_choices for item in self.items):
            # No error: in a sweep of mixed items some subsets have none.
            warn("--score_choices True: none of the items has answer choices")
        _check_best_metric(self)
        self.results.check_writable()
        check_writable(f"--output_dir {self.training.output_dir}", Path(self.training.output_dir).absolute())
        check_model(self.model, self.family, self.training.do_train, self.data.cache_dir)
        _check_lengths(self)


def splits(experiment: Experiment) -> list[str]:
    """Names in the results of the rows that are asked to be scored."""
    return [ROLES[role] for role in experiment.roles if role in ROLES]


def _check_gold(data: Data) -> None:
    for entry in (entry for by_item in data.values() for entries in by_item.values() for entry in entries):
        if entry.template.answer_choices and (wrong := entry.counts["without_gold"]):
            raise InputError(f"--score_choices True: {wrong} {entry.role} rows of {entry.template.item} have a target "
                             f"that is none of their answer choices ({entry.source})")


def _check_lengths(experiment: Experiment, longest_choice: int = 0) -> None:
    model, data = experiment.model, experiment.data
    experiment.family.check_lengths(
        model.model_name_or_path, data.max_source_length,
        max(data.max_target_length, experiment.training.generation_max_length or 0, longest_choice),
        model.num_virtual_tokens if model.train_prompt_tuning or model.train_prefix else 0)


def _check_best_metric(experiment: Experiment) -> None:
    name = experiment.training.metric_for_best_model
    if name is None:
        return
    allowed = {f"eval_{metric}" for item in experiment.items for metric in experiment.metrics(item)}
    allowed |= {f"eval_{name}_{metric}" for item in experiment.items for metric in experiment.metrics(item)
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
                ("shortened_inputs", "inputs shortened to --max_source_length"),
                ("cut_inputs", "inputs cut to --max_source_length"),
                ("cut_targets", "targets cut to --max_target_length"),
                *((name, f"rows {what} left out") for name, what in LEFT_OUT.items())) if total[name]]
            if total["unwritable_targets"]:
                warn(f"{total['unwritable_targets']} of {total['rows']} {role} targets of {item} hold signs or tokens "
                     "that this model's tokenizer cannot write: no prediction can match them")
            log.info("%-10s %-24s %7d rows  %9d input tokens  %8d target tokens  from %s%s", role, item, total["rows"],
                     total["input_tokens"], total["target_tokens"], entries[0].source,
                     f"  ({', '.join(notes)})" if notes else "")
