"""The Seq2SeqTrainer wrapper: each item evaluated by itself, the best evaluated model kept."""

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, Seq2SeqTrainer

from src.training.families import IGNORED, Family, padded
from src.training.flags import DataArguments, TrainingArguments
from src.training.scored import Scored, choice_scores, token_losses
from src.training.tokenised import Prepared

log = logging.getLogger(__name__)
# Of the model folder's generation settings evaluation takes these; a minimal length, say, would change every score.
TAKEN = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "forced_bos_token_id",
         "forced_eos_token_id")
CURES = {True: "float16 overflows easily: use --bf16 True, or float32 (--fp16 False)",
         False: "lower --learning_rate, and see above whether the tokenizer can write the targets"}  # by --fp16
EMPTY_EVALUATIONS = 3  # that many evaluations in a row of nothing but empty text end a run


class TrainingFailed(RuntimeError):
    """The run cannot give a result any more; the message names the cure."""


class _Report(transformers.TrainerCallback):
    """One log line per training log and per evaluation; ends the run when the loss is no number."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or logs is None:
            return
        loss = logs.get("loss", logs.get("train_loss"))
        if loss is not None and not math.isfinite(loss):
            cure = CURES[True] if args.fp16 else "lower --learning_rate or --max_grad_norm"
            raise TrainingFailed(f"the training loss is {loss} at step {state.global_step}; {cure}")
        names = ("loss", "learning_rate", "eval_loss", "eval_exact_match", "train_loss", "train_runtime")
        text = "  ".join(f"{name} {logs[name]:.4g}" for name in names if name in logs)
        if text:
            log.info("step %d/%d  %s", state.global_step, state.max_steps, text)


class Collator:
    """Pads the rows of a batch: inputs and targets each to their longest, or to lengths of their own.

    Args:
        model: gives a decoder's inputs from the labels.
        lengths: (input, target) tokens that no row goes beyond: a model may have positions for no more.
        multiple: pads to a multiple of so many tokens, or to `lengths` where that is less; None: always to `lengths`.
    """

    def __init__(self, family: Family, model, lengths: tuple[int, int], multiple: int | None = 1):
        self.family, self.model, self.lengths, self.multiple = family, model, lengths, multiple

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        """The inputs of the model with their labels; of rows with `choices` these, too, (b, choices, tokens), and the
        position of the right one in `gold` (b,)."""
        prompts, targets = ([row[name] for row in rows] for name in ("input_ids", "labels"))
        widths = self.lengths if self.multiple is None else [
            min(-(-max(map(len, side)) // self.multiple) * self.multiple, length)
            for side, length in zip((prompts, targets), self.lengths, strict=True)]
        batch = self.family.collate(self.model, prompts, targets, widths)
        if "choices" in rows[0]:
            most = max(len(row["choices"]) for row in rows)
            longest = max(len(ids) for row in rows for ids in row["choices"])
            batch["choices"] = torch.stack([
                padded([*row["choices"], *[[]] * (most - len(row["choices"]))], longest, IGNORED) for row in rows])
            batch["gold"] = torch.tensor([row["gold"] for row in rows])
        return batch


def generating_parts(model) -> list:
    """The models of which one's generation settings count: an adapter's own, and its base model's."""
    parts = (model, model.get_base_model()) if hasattr(model, "peft_config") else (model,)
    return [part for part in parts if getattr(part, "generation_config", None) is not None]


@contextlib.contextmanager
def own_generation(parts: Sequence) -> Iterator[None]:
    """Generate by the special tokens of the models `parts` alone, whatever else their generation settings say."""
    before = [part.generation_config for part in parts]
    for part, config in zip(parts, before, strict=True):
        part.generation_config = GenerationConfig(**{name: getattr(config, name) for name in TAKEN})
    try:
        yield
    finally:
        for part, config in zip(parts, before, strict=True):
            part.generation_config = config


def say_what_is_not_taken(parts: Sequence) -> None:
    """Log the generation settings of the models `parts` that evaluation does not follow."""
    settings = {name: value for part in parts for name, value in part.generation_config.to_diff_dict().items()}
    found = {name: value for name, value in settings.items()
             if value and name not in (*TAKEN, "transformers_version", "use_cache") and not name.startswith("_")}
    if found:
        log.info("evaluation generates by settings of its own, not by those of the model folder: %s",
                 ", ".join(f"{name} {value}" for name, value in sorted(found.items())))


class Trainer(Seq2SeqTrainer):
    """Seq2SeqTrainer that evaluates each item by itself and keeps the best *evaluated* model.

    Args:
        family: how the model reads and writes.
        eval_items: item name -> its evaluation sets, one per template; an item's metric is the mean over them.
        data_args: lengths and padding.
        keep_predictions: collect what each row of the last evaluation gave in `predictions`.

    `evaluate` gives, for each template `rte_0` and each item: `eval_rte_0_exact_match`, `eval_rte_0_loss`, ...; and
    for each metric its mean over the items that have it: `eval_exact_match`.
    """

    def __init__(self, model, family: Family, args: TrainingArguments, data_args: DataArguments,
                 train_dataset=None, eval_items: dict[str, Sequence[Prepared]] | None = None,
                 keep_predictions: bool = False):
        fixed = data_args.pad_to_max_length and args.torch_compile
        collator = Collator(family, model, (data_args.max_source_length, data_args.max_target_length),
                            None if fixed else 8 if args.fp16 or args.bf16 else 1)
        patience = args.early_stopping_patience
        callbacks = [_Report()] + ([transformers.EarlyStoppingCallback(patience)] if patience else [])
        super().__init__(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_items or {},
                         data_collator=collator, processing_class=family.tokenizer, callbacks=callbacks,
                         compute_loss_func=partial(family.loss, label_smoothing=args.label_smoothing_factor))
        self.family = family
        self._loss_shifts_labels = False  # labels are those of the positions that they stand at
        self._signature_columns = ["input_ids", "labels", "choices", "gold"]  # of a row, those that make a batch
        for module in model.modules():  # T5's encoder and decoder hold copies of the config that Trainer sets this in
            if hasattr(module, "config") and hasattr(module.config, "use_cache"):
                module.config.use_cache = args.use_cache  # training fills no cache; generation asks for its own
        self.remove_callback(transformers.trainer_callback.PrinterCallback)
        self.generation_cap = args.generation_max_length or data_args.max_target_length
        self.max_source_length = data_args.max_source_length
        self._empty_evaluations = 0
        self._gen_kwargs: dict = {}  # of the evaluation set at hand
        self.keep_predictions, self.predictions = keep_predictions, []
        self.generating = generating_parts(model)
        say_what_is_not_taken(self.generating)

    def evaluate(self, eval_dataset: dict[str, Sequence[Prepared]] | None = None, ignore_keys=None,
                 metric_key_prefix: str = "eval") -> dict[str, float]:
        """Generate for every evaluation set and score it; see the class for the keys of the result."""
        items = self.eval_dataset if eval_dataset is None else eval_dataset
        result, by_item, empty = {}, {}, True
        self.predictions.clear()
        for item, sets in items.items():
            scores = []
            for prepared in sets:
                scores.append(self._evaluate_set(prepared, item))
                empty = empty and scores[-1].pop("empty")
                result |= _prefixed(f"{metric_key_prefix}_{prepared.template.item}", scores[-1])
            by_item[item] = _means(scores)
            result |= _prefixed(f"{metric_key_prefix}_{item}", by_item[item])
        result |= _prefixed(metric_key_prefix, _means(by_item.values()))
        self.log(dict(result))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, result)
        if self.is_in_train:
            self._empty_evaluations = self._empty_evaluations + 1 if empty else 0
            if self._empty_evaluations == EMPTY_EVALUATIONS:
                raise TrainingFailed(
                    f"{EMPTY_EVALUATIONS} evaluations in a row gave only empty text (last at step "
                    f"{self.state.global_step}); {CURES[self.args.fp16]}")
        return result

    def _evaluate_set(self, prepared: Prepared, item: str) -> dict[str, float]:
        self._gen_kwargs = {"max_new_tokens": prepared.generation_length(self.generation_cap), "use_cache": True,
                            "num_beams": self.args.generation_num_beams or 1, "do_sample": False}
        self.compute_metrics = partial(self._score, prepared, item)
        self.gather_function = self.accelerator.gather
        loader = self._evaluation_loader(prepared)
        with own_generation(self.generating):
            output = self.evaluation_loop(loader, prepared.template.item, prediction_loss_only=False,
                                          metric_key_prefix="x")
        return {name.removeprefix("x_"): value for name, value in output.metrics.items()
                if name != "x_model_preparation_time"}

    def _evaluation_loader(self, prepared: Prepared):
        """Batches of rows of like length: as many as take no more room than --per_device_eval_batch_size longest rows.

        Several processes share out batches of equal size, so that there the number of rows is fixed.
        """
        scored = ["choices", "gold"] if self._scores_choices(prepared) else []
        dataset = prepared.dataset.select_columns(["input_ids", "labels", *scored])
        if self.args.world_size > 1:
            return self.get_eval_dataloader(dataset)
        room = self.args.eval_batch_size * self.max_source_length, self.args.eval_batch_size * self.generation_cap
        outputs = self._gen_kwargs["max_new_tokens"]
        batches, start = [], 0
        while start < len(dataset):  # longest rows first: the first row of a batch is its longest
            size = max(1, min(room[0] // len(dataset[start]["input_ids"]),
                              room[1] // max(outputs, prepared.counts["longest_target"])))
            batches.append(range(start, min(start + size, len(dataset))))
            start += size
        return self.accelerator.prepare(torch.utils.data.DataLoader(
            dataset, batch_sampler=batches, collate_fn=self.data_collator, pin_memory=self.args.dataloader_pin_memory,
            num_workers=self.args.dataloader_num_workers))

    def _scores_choices(self, prepared: Prepared) -> bool:
        return bool(self.args.score_choices and prepared.template.answer_choices)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **gen_kwargs):
        """Return (None, generated ids, [batch, 2 or 4]) with, for each row, the summed negative log-likelihood and the
        number of its labels, and where choices are scored whether the likeliest is right and the loss among them.

        The sums make the loss exact for every batch size and order: evaluation rows come sorted by length.
        """
        batch = self._prepare_inputs(inputs)
        choices, gold = batch.pop("choices", None), batch.pop("gold", None)
        with torch.no_grad(), self.compute_loss_context_manager(), self.accelerator.autocast():
            batch = self.family.read(self.model, batch)
            logits, labels = self.family.target_logits(model, batch)
            loss = token_losses(logits, labels)
            stats = [loss.sum(1), (labels != IGNORED).sum(1).to(loss.dtype)]
            if choices is not None:
                scores = choice_scores(self.family, self.model, batch, logits, choices)
                stats += [(scores.argmax(1) == gold).to(loss.dtype), cross_entropy(scores, gold, reduction="none")]
            if self.args.predict_with_generate:
                generated = self.family.generate(self.model, batch, **self._gen_kwargs)
            else:
                generated = labels.new_full((len(labels), 1), self.family.filler)
        return None, generated, torch.stack(stats, dim=1)

    def _score(self, prepared: Prepared, item: str, output: transformers.EvalPrediction) -> dict[str, float]:
        scored = Scored(prepared, self.family, output, self.args.predict_with_generate)
        if self.keep_predictions:
            self.predictions += scored.rows(item)
        return scored.scores | {"empty": scored.texts is not None and not any(scored.texts)}

    def take_up(self, checkpoint: str) -> None:
        """Be as after the training that ended in `checkpoint`: its state and, where asked for, the best model."""
        self.state = transformers.trainer_callback.TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
        self._load_from_checkpoint(checkpoint)
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best and best != checkpoint:
            self._load_best_model()

    def _issue_warnings_after_load(self, load_result):
        # Tied weights are stored once, under one of their names; the others are not missing.
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", {})
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)

    def _determine_best_metric(self, metrics, trial):
        # Saving only at --save_steps, the trainer would load the best *saved* model, not the best evaluated one.
        best = super()._determine_best_metric(metrics, trial)
        if best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return best


def _means(scores: Iterable[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over those that have it."""
    values: dict[str, list[float]] = {}
    for score in scores:
        for name, value in score.items():
            values.setdefault(name, []).append(value)
    return {name: float(np.mean(of_metric)) for name, of_metric in values.items()}


def _prefixed(prefix: str, scores: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in scores.items()}
