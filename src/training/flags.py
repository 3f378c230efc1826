"""Every flag of the training scripts, once: its unit, default and old spellings."""

import argparse
import dataclasses
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from src import DEFAULT_CACHE_DIR, DEFAULT_DATA_DIR, DEFAULT_TASK_DIR
from src.cli import InputError, OneLineErrors, did_you_mean, warn
from src.files import with_file
from src.old_flags import SHORT, translate_old_flags
from src.tasks.catalogue import expand_names, load_task
from src.tasks.task import Item, instruction_items, task_items


def flag(default, help: str, **options):
    """A dataclass field with help text and more options of argparse; lists are copied for each instance."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **options})
    return field(default=default, metadata={"help": help, **options})


@dataclass
class ModelArguments:
    """Which model, and which of its weights are trained (all of them, unless one of the --train_... flags is given)."""

    model_name_or_path: str = field(metadata={
        "help": "A language model, encoder-decoder or decoder-only: a name on the hub (t5-base, gpt2) or a folder."})
    model_revision: str = flag("main", "Branch, tag or commit of the model on the hub.")
    model_dtype: Literal["float32", "bfloat16", "auto"] = flag(
        "float32", "Type of the model's weights; bfloat16, or auto (as saved), for weights that are not trained.")
    chat_template: str = flag(
        "auto", "How a decoder-only model is addressed: auto (as its tokenizer says, plainly where it says nothing), "
        "none (input, newline, target), or a file with a Jinja template.")
    system_prompt: str | None = flag(
        None, "What the system says in a chat template, none for nothing (default: what the template says by itself).")
    train_lora: bool = flag(False, "Train low-rank adapters (LoRA) only; checkpoints hold the adapter alone.")
    lora_rank: int = flag(4, "Rank of the LoRA update, 1 or more.")
    lora_alpha: float = flag(32, "Scale of the LoRA update: it is multiplied by lora_alpha / lora_rank.")
    lora_dropout: float = flag(0.0, "Dropout probability before the LoRA matrices, 0 to 1.")
    lora_target_modules: list[str] | None = flag(
        None, "Names of the linear layers that get LoRA, or all-linear (default: the query and value projections).")
    train_prefix: bool = flag(False, "Train a prefix of key and value vectors in each layer only (prefix tuning).")
    train_prompt_tuning: bool = flag(False, "Train vectors put before the input only (prompt tuning).")
    num_virtual_tokens: int = flag(20, "Length of the trained prefix or prompt, in positions.")
    train_only: str | None = flag(
        None, "Train only the parameters in whose names this regular expression is found, for example decoder.block.5 "
        "or SelfAttention.q (default: all).", metavar="REGEX")

    @property
    def trains_adapter(self) -> bool:
        """Whether the model's own weights stay as they are."""
        return self.train_lora or self.train_prefix or self.train_prompt_tuning

    def validate(self) -> None:
        chosen = [name for name in ("train_lora", "train_prefix", "train_prompt_tuning", "train_only")
                  if getattr(self, name)]
        if len(chosen) > 1:
            raise InputError(f"--{chosen[0]} and --{chosen[1]} exclude each other; give at most one")
        changed = [item.name for item in dataclasses.fields(self) if item.name.startswith("lora_")
                   and getattr(self, item.name) != item.default]
        if changed and not self.train_lora:
            warn(f"--{changed[0]} changes nothing without --train_lora True: no LoRA is trained")
        try:
            re.compile(self.train_only or "")
        except re.error as error:
            raise InputError(f"--train_only '{self.train_only}' is no regular expression: {error}") from error


@dataclass
class DataArguments:
    """Rows, templates and lengths."""

    template_idx: list[str] = flag(
        ["0"], "Instructions to train and evaluate under: positions in the task file, -1 (none) for the bare input.")
    eval_task_names: list[str] = flag([], "Held-out tasks, scored once by the last or best model (default: none).")
    eval_template_idx: list[str] = flag([], "Held-out instructions, scored likewise (default: none).")
    task_dir: str = flag(DEFAULT_TASK_DIR, "Folder of the task files (YAML, or Natural Instructions JSON).")
    data_dir: str = flag(DEFAULT_DATA_DIR, "Folder of local rows: <task>/train.jsonl|csv|parquet and so on; used where "
                         "present, otherwise the rows come from the hub.")
    cache_dir: str = flag(DEFAULT_CACHE_DIR, "Folder for tokenised data and downloads.")
    overwrite_cache: bool = flag(False, "Render and tokenise again instead of using the cache.")
    source_prefix: str = flag("", "Put before every input, for models that want to be told their task.")
    max_source_length: int = flag(
        512, "Longer inputs are cut to this many tokens, those of a chat template and --source_prefix counted.")
    max_target_length: int = flag(128, "Longer targets are cut to this many tokens.")
    pad_to_max_length: bool = flag(
        False, "Ask for fixed shapes. Honoured with --torch_compile; otherwise batches are padded to their longest "
        "row, which gives the same loss at a fraction of the cost.")
    downsample: int | None = flag(
        None, "Keep at most this many training rows per task, and as many evaluation rows, drawn by --data_seed or "
        "the run's seed (default: all).")
    validation_from_train: bool | None = flag(
        None, "Where the test split has no labels: test on the official validation split and validate on a seeded "
        "slice of the training split (default: with --do_predict only).")

    def validate(self) -> None:
        self.indices()
        self.indices("eval_template_idx")

    mixing: ClassVar[str] = "proportional"  # of one task's templates, which all have the same rows
    mixing_temperature: ClassVar[float] = 1.0

    def indices(self, name: str = "template_idx") -> list[int]:
        """Template indices in the order given; raise InputError for what is no index or is given twice."""
        indices = []
        for text in getattr(self, name):
            try:
                index = -1 if text == "none" else int(text)
            except ValueError:
                raise InputError(f"--{name} '{text}' must be a position from 0 on, or -1 (none)") from None
            if index in indices:
                raise InputError(f"--{name} {index} is given twice")
            indices.append(index)
        if not indices and name == "template_idx":
            raise InputError("--template_idx is empty; give positions from 0 on, or -1 (none)")
        return indices


@dataclass
class InstructionArguments(DataArguments):
    """Rows, templates and lengths of one task."""

    task_name: str = field(kw_only=True, metadata={"help": "The task: the name of a file in --task_dir."})

    def items(self) -> list[Item]:
        """One item per template."""
        return instruction_items(load_task(self.task_name, self.task_dir), self.indices())


@dataclass
class MultitaskArguments(DataArguments):
    """Rows, templates and lengths of several tasks."""

    task_names: list[str] = field(kw_only=True, metadata={
        "help": "The tasks: names of files in --task_dir, globs (demo_*), or @file with names."})
    mixing: Literal["proportional", "equal", "temperature"] = flag(
        "proportional", "How often each task's rows are drawn: by their number, equally, or by their number to the "
        "power 1 / mixing_temperature.")
    mixing_temperature: float = flag(2.0, "Temperature of --mixing temperature: 1 is proportional, large is equal.")

    def items(self) -> list[Item]:
        """One item per task, each under the same template indices."""
        names = expand_names(self.task_names, self.task_dir)
        return task_items([load_task(name, self.task_dir) for name in names], self.indices())


@dataclass
class ResultArguments:
    """Repetitions and results."""

    runs: int = flag(1, "Number of runs, with seeds --seed, --seed + 1, and so on.")
    save_name: str | None = flag(None, "Name of the results, <results_dir>/<save_name>/ (default: by task, model).")
    results_dir: str = flag("results", "Folder of all results.")
    check: bool = flag(
        False, "Only look at everything that can be known before a training, and print as JSON what would name it.")
    save_predictions: bool = flag(
        False, "Write what each evaluated row gave to runs/<run>.predictions.jsonl: template, input, prediction, "
        "accepted answers, scores.")


@dataclass
class TrainingArguments(Seq2SeqTrainingArguments):
    """Evaluation, checkpoints, reports; with --help_all, all flags of the Hugging Face Trainer."""

    output_dir: str = flag("saved/", "Folder of the checkpoints: <output_dir>/<run>/checkpoint-<step>/.")
    overwrite_output_dir: bool = flag(
        False, "Start each run afresh; without it a finished run is kept and a broken one goes on from its checkpoint.")
    disable_tqdm: bool = flag(False, "No progress bars.")
    report_to: str = flag("none", "Where the trainer reports to: none, tensorboard, wandb, all, ...; runs are named "
                          "there by their items.", metavar="NAME")
    save_total_limit: int | None = flag(1, "Checkpoints kept besides the best one; 0: all.")
    score_choices: bool = flag(
        False, "Also score answer choices by their likelihood: choice_accuracy and choice_loss (nats).")
    early_stopping_patience: int | None = flag(
        None, "End the training after so many evaluations in a row without a better --metric_for_best_model (default: "
        "never).")
    # The filter would hide that the loss has become NaN, which must end the run.
    logging_nan_inf_filter: bool = flag(False, "Leave NaN losses out of the logged mean.")

    def __post_init__(self):
        import torch

        check_numbers(self)  # the library takes some for others
        on_gpu = torch.cuda.is_available() and not self.use_cpu
        if self.fp16 and not on_gpu:
            warn("--fp16 True: there is no GPU, training in float32")
            self.fp16 = False
        elif self.fp16 and torch.cuda.is_bf16_supported():
            warn("--fp16 True: T5 in float16 can overflow to NaN; this GPU knows bfloat16, --bf16 True is recommended")
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
            self.use_cpu |= self.bf16  # the library wants to be told that bfloat16 is meant for the CPU
        if os.environ.get("CUDA_VISIBLE_DEVICES", "").strip() not in ("", "-1") and not torch.cuda.is_available():
            warn(f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}: no such GPU, running on the CPU")
        if self.deepspeed and not Path(self.deepspeed).is_file():
            raise InputError(f"--deepspeed {self.deepspeed}: there is no such file")
        if (self.load_best_model_at_end and self.save_strategy == self.eval_strategy == "steps" and self.eval_steps
                and min(self.eval_steps, self.save_steps) >= 1 and self.save_steps % self.eval_steps):
            raise InputError(f"--save_steps {self.save_steps:g} must be a multiple of --eval_steps {self.eval_steps:g} "
                             f"with --load_best_model_at_end, for example {self.eval_steps:g}")
        if self.early_stopping_patience is not None:  # a run that goes on counts from where it was
            self.restore_callback_states_from_checkpoint = True
        try:
            super().__post_init__()
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            raise InputError(" ".join(str(error).split())) from error
        # One process trains on one GPU, so that the batch size means what it says; torchrun takes more of them.
        self._n_gpu = min(self.n_gpu, 1)

    def validate(self) -> None:
        if not (self.do_train or self.do_eval or self.do_predict):
            raise InputError("nothing to do: give --do_train, --do_eval or --do_predict")
        if self.early_stopping_patience and (self.eval_strategy == "no" or not self.metric_for_best_model):
            raise InputError("--early_stopping_patience needs evaluations and a --metric_for_best_model: "
                             "add --eval_strategy steps and, for example, --load_best_model_at_end")
        if self.optim_args and any(pair.count("=") != 1 for pair in self.optim_args.split(",")):
            raise InputError(f"--optim_args {self.optim_args}: must be pairs, as in rank=8,scale=0.5")
        if self.torch_compile:
            check_compilation(self.torch_compile_backend, self.torch_compile_mode)
        for name, only in (("batch_eval_metrics", False), ("eval_do_concat_batches", True),
                           ("prediction_loss_only", False)):
            if getattr(self, name) != only:
                raise InputError(f"--{name} {not only}: evaluation scores whole sets at once; leave it {only}")
        checkpoint = self.resume_from_checkpoint
        if checkpoint and not Path(checkpoint, "trainer_state.json").is_file():
            raise InputError(f"--resume_from_checkpoint {checkpoint}: no checkpoint there (a folder with "
                             "trainer_state.json); without the flag a run goes on from its own last one")
        check_reporters(self.report_to)


MOST = 2**32  # of a whole number: more than seeds go to
AT_LEAST_1 = ("at least 1", lambda value: value >= 1)
# What a value must be -> the flags of which it must be so. Those with the default None may be left out.
BOUNDS = {
    AT_LEAST_1: (
        "lora_rank", "num_virtual_tokens", "max_source_length", "max_target_length", "downsample", "runs",
        "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
        "generation_max_length", "generation_num_beams", "early_stopping_patience", "ddp_timeout",
        "dataloader_prefetch_factor", "eval_accumulation_steps", "torch_empty_cache_steps"),
    ("at least 0", lambda value: value >= 0): (
        "learning_rate", "weight_decay", "warmup_steps", "max_grad_norm", "adam_epsilon", "eval_delay",
        "neftune_noise_alpha", "save_total_limit", "dataloader_num_workers"),
    ("above 0", lambda value: value > 0): (
        "num_train_epochs", "logging_steps", "eval_steps", "save_steps", "mixing_temperature"),
    ("at least 0 and below 1", lambda value: 0 <= value < 1): ("lora_dropout", "adam_beta1", "adam_beta2"),
    ("at least 0 and at most 1", lambda value: 0 <= value <= 1): ("label_smoothing_factor",),
    (f"at least 0 and below {2**32 - 2**16}", lambda value: 0 <= value < 2**32 - 2**16): ("seed", "data_seed"),
    ("at least 1 (or -1: by --num_train_epochs)", lambda value: value >= 1 or value == -1): ("max_steps",),
    ("the name of a folder (. is this one)", str.strip): (
        "results_dir", "output_dir", "cache_dir", "data_dir", "task_dir"),
}


def check_numbers(group, bounds: Mapping = BOUNDS) -> None:
    """Raise InputError for a value of a group of flags that is out of its bounds, or NaN, infinite, too large."""
    for item in dataclasses.fields(group):
        value = getattr(group, item.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{item.name} {value} must be a finite number")
        if isinstance(value, int) and value > MOST:
            raise InputError(f"--{item.name} {value} must be at most {MOST}")
    for (words, fits), names in bounds.items():
        for name in names:
            if (value := getattr(group, name, None)) is not None and not fits(value):
                raise InputError(f"--{name} {value if str(value).strip() else repr(value)} must be {words}")


def check_compilation(backend: str, mode: str | None) -> None:
    """Raise InputError for a --torch_compile_backend or --torch_compile_mode that is not there."""
    import torch._inductor
    from accelerate.utils import DynamoBackend

    for name, value, allowed in (
            ("backend", backend, {each.value.lower() for each in DynamoBackend} & {*torch.compiler.list_backends(())}),
            ("mode", mode or "default", torch._inductor.list_mode_options())):
        if value not in allowed:
            raise InputError(f"--torch_compile_{name} {value}: {did_you_mean(value, allowed)}")


def check_reporters(names: Iterable[str]) -> None:
    """Raise InputError for a reporter of --report_to that is unknown or not installed."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as known

    for name in names:
        if name not in known:
            raise InputError(f"--report_to {name}: {did_you_mean(name, [*known, 'none', 'all'])}")
        try:
            known[name]()
        except Exception as error:  # whatever the reporter's library raises where it is missing
            raise InputError(f"--report_to {name}: {str(error).partition(chr(10))[0]}") from error


USUAL = """The usual ones of the Hugging Face Trainer's flags, all of which --help_all shows:
    --do_train --do_eval --do_predict --predict_with_generate --max_steps N --num_train_epochs X --learning_rate X
    --per_device_train_batch_size N --lr_scheduler_type constant --eval_strategy steps --eval_steps N --save_steps N
    --load_best_model_at_end --metric_for_best_model eval_exact_match --seed N --bf16 True"""


class _Parser(OneLineErrors, HfArgumentParser):
    """HfArgumentParser with errors of one line."""


def make_parser(classes: Sequence[type], description: str, everything: bool) -> _Parser:
    """The parser of all flags of the dataclasses; --help shows those of the Trainer only where `everything` is asked.

    classes: TrainingArguments comes last.
    """
    for cls in classes:
        cls._argument_group_name = cls.__doc__.strip().partition("\n")[0].removesuffix(".")
    parser = _Parser(classes, description=description, epilog=USUAL)
    parser.add_argument("--help_all", action="help", help="show the Trainer's flags, too, and exit")
    trainers = {field.name for field in dataclasses.fields(TrainingArguments)} - set(TrainingArguments.__annotations__)
    for action in parser._actions:
        if action.dest in trainers and not everything:
            action.help = argparse.SUPPRESS
    return parser


def parse(data_class: type[DataArguments], description: str, arguments: list[str] | None = None,
          more: tuple[type, ...] = ()):
    """Parse the command line.

    Args:
        data_class: InstructionArguments or MultitaskArguments.
        description: the script's docstring, shown by --help.
        arguments: the command line (default: this process's), or a JSON file of flags.
        more: further dataclasses of flags.

    Returns:
        (data_class, ModelArguments, ResultArguments, TrainingArguments, *more), each checked as far as flags alone
        allow.

    Raises:
        InputError: a value that is not allowed. SystemExit(2): a flag that is missing, unknown or of the wrong type.
    """
    arguments = translate_old_flags(with_file(sys.argv[1:] if arguments is None else arguments))
    parser = make_parser((*more, data_class, ModelArguments, ResultArguments, TrainingArguments), description,
                         everything="--help_all" in arguments)
    *parsed, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True,
                                                          look_for_args_file=False)
    if unknown:
        known = [option for option in parser._option_string_actions if "-" not in option[2:]]
        name = unknown[0].partition("=")[0]
        name = SHORT.get(name.removeprefix("--"), name)
        hint = did_you_mean(name, known, shown=0) if unknown[0].startswith("--") else ""
        parser.error(": ".join(filter(None, (f"unknown argument '{unknown[0]}'", hint))))
    for group in parsed:
        check_numbers(group)
        if not isinstance(group, ResultArguments):  # which only has bounds
            group.validate()
    return parsed[len(more):] + parsed[:len(more)]
