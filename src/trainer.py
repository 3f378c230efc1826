"""Model, adapters and the Seq2SeqTrainer wrapper."""

import dataclasses
import logging
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, Seq2SeqTrainer

from src import metrics
from src.args import DataArguments, ModelArguments, TrainingArguments
from src.data import Prepared, check_hub
from src.errors import InputError, did_you_mean

log = logging.getLogger(__name__)

# Query and value projections by their usual names, for model families that PEFT has no default for.
ATTENTION_NAMES = (("q", "v"), ("q_proj", "v_proj"), ("query", "value"))
EMPTY_EVALUATIONS = 3  # that many evaluations in a row of nothing but empty text end a run


class TrainingFailed(RuntimeError):
    """The run cannot give a result any more; the message names the cure."""


# ---- model ---------------------------------------------------------------------------------------------------------


def load_tokenizer(args: ModelArguments, cache_dir: str):
    """Load the tokenizer and check, from the config alone, that the model is a sequence-to-sequence model.

    Raises:
        InputError: there is no such model, or it is not sequence-to-sequence.
    """
    name = args.model_name_or_path
    where = {"revision": args.model_revision, "cache_dir": f"{cache_dir}/hub"}
    check_hub(name)
    try:
        config = AutoConfig.from_pretrained(name, **where)
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
    except (OSError, ValueError, KeyError) as error:
        folders = [str(p) for p in Path(name).parent.iterdir() if p.is_dir()] if Path(name).parent.is_dir() else []
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"--model_name_or_path '{name}': neither a folder with a model nor one that the hub gives: "
                         f"{reason} {did_you_mean(name, folders, shown=0).partition('(')[0]}".rstrip()) from error
    if not config.is_encoder_decoder:
        raise InputError(f"--model_name_or_path '{name}': {config.model_type} is no sequence-to-sequence model; "
                         "allowed is what AutoModelForSeq2SeqLM loads (T5, mT5, ByT5, UL2, BART, Pegasus, ...)")
    return tokenizer


def load_model(args: ModelArguments, cache_dir: str, tokenizer_size: int):
    """Load the model in float32, with the adapter that `args` ask for.

    Args:
        tokenizer_size: `len(tokenizer)`; the embedding grows where it holds fewer tokens.
    """
    model = AutoModelForSeq2SeqLM.from_pretrained(args.model_name_or_path, revision=args.model_revision,
                                                  cache_dir=f"{cache_dir}/hub", dtype=torch.float32)
    if tokenizer_size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(tokenizer_size)
    adapter = _adapter_config(args, model)
    if adapter is None:
        return model
    import peft

    return peft.get_peft_model(model, adapter)


SHAPES = ("model_type", "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
          "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim")  # of a model, in its config


def check_checkpoint(args: ModelArguments, cache_dir: str, tokenizer_size: int, folder: str | Path) -> None:
    """Raise InputError where `folder` (--start_from) holds no checkpoint, or one of another model than `args` name."""
    folder, name = Path(folder), args.model_name_or_path
    where = f"--start_from {folder}"
    is_adapter = (folder / "adapter_config.json").is_file()
    if not (is_adapter or (folder / "config.json").is_file()) or not any(
            path.suffix in (".safetensors", ".bin") for path in folder.iterdir()):
        found = {str(path.parent) for path in folder.parent.glob("*/*config.json")}
        raise InputError(f"{where}: no checkpoint there; {did_you_mean(str(folder), found)}")
    try:
        if is_adapter:
            import peft

            config = peft.PeftConfig.from_pretrained(folder)
            if config.peft_type != peft.PeftType.LORA:
                raise InputError(f"{where}: an adapter of the kind {config.peft_type}, only LORA is allowed")
            base = config.base_model_name_or_path
            if base != name and not (Path(name).is_dir() and Path(base).resolve() == Path(name).resolve()):
                raise InputError(f"{where}: an adapter of another model, {base}, not of --model_name_or_path {name}")
            return
        other = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: its config cannot be read: {str(error).partition(chr(10))[0]}") from error
    own = AutoConfig.from_pretrained(name, revision=args.model_revision, cache_dir=f"{cache_dir}/hub")
    for key in SHAPES:
        here, there = getattr(own, key, None), getattr(other, key, None)
        if there != here and not (key == "vocab_size" and there == tokenizer_size):
            raise InputError(f"{where}: a checkpoint of another model: its {key} is {there}, that of "
                             f"--model_name_or_path {name} is {here}")


def load_checkpoint(args: ModelArguments, cache_dir: str, tokenizer_size: int, folder: str | Path):
    """Load the model that a training with `args` has saved in `folder`: a whole model, or an adapter of one."""
    check_checkpoint(args, cache_dir, tokenizer_size, folder)
    if (Path(folder) / "adapter_config.json").is_file():
        import peft

        base = load_model(dataclasses.replace(args, train_lora=False), cache_dir, tokenizer_size)
        return peft.PeftModel.from_pretrained(base, folder, is_trainable=True)
    return load_model(dataclasses.replace(args, model_name_or_path=str(folder), model_revision="main"), cache_dir,
                      tokenizer_size)


def _adapter_config(args: ModelArguments, model):
    if not (args.train_lora or args.train_prefix or args.train_prompt_tuning):
        return None
    import peft

    kind = peft.TaskType.SEQ_2_SEQ_LM
    if args.train_lora:
        return peft.LoraConfig(task_type=kind, r=args.lora_rank, lora_alpha=args.lora_alpha,
                               lora_dropout=args.lora_dropout, target_modules=_lora_targets(args, model))
    cls = peft.PrefixTuningConfig if args.train_prefix else peft.PromptTuningConfig
    return cls(task_type=kind, num_virtual_tokens=args.num_virtual_tokens)


def _lora_targets(args: ModelArguments, model) -> list[str] | None:
    """Layers that get LoRA: the user's, else None where PEFT knows the family, else the usual names."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known

    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    if args.lora_target_modules:
        for name in args.lora_target_modules:
            if name not in linear:
                raise InputError(f"--lora_target_modules: the model has no linear layer '{name}'; "
                                 f"{did_you_mean(name, linear)}")
        return args.lora_target_modules
    if model.config.model_type in known:
        return None
    for names in ATTENTION_NAMES:
        if linear.issuperset(names):
            return list(names)
    raise InputError(f"--train_lora: no usual query and value projection in {model.config.model_type}; "
                     f"name some with --lora_target_modules {did_you_mean('', linear)}")


# ---- trainer -------------------------------------------------------------------------------------------------------


class _Report(transformers.TrainerCallback):
    """One log line per training log and per evaluation; ends the run when the loss is no number."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or logs is None:
            return
        loss = logs.get("loss", logs.get("train_loss"))
        if loss is not None and not math.isfinite(loss):
            cure = ("float16 overflowed: use --bf16 True, or float32 (--fp16 False)" if args.fp16
                    else "lower --learning_rate or --max_grad_norm")
            raise TrainingFailed(f"the training loss is {loss} at step {state.global_step}; {cure}")
        names = ("loss", "learning_rate", "eval_loss", "eval_exact_match", "train_loss", "train_runtime")
        text = "  ".join(f"{name} {logs[name]:.4g}" for name in names if name in logs)
        if text:
            log.info("step %d/%d  %s", state.global_step, state.max_steps, text)


class Trainer(Seq2SeqTrainer):
    """Seq2SeqTrainer that evaluates each item by itself and keeps the best *evaluated* model.

    Args:
        eval_items: item name -> its evaluation sets, one per template; an item's metric is the mean over them.
        data_args: lengths and padding.

    `evaluate` gives, for each template `rte_0` and each item: `eval_rte_0_exact_match`, `eval_rte_0_loss`, ...; and
    for each metric its mean over the items that have it: `eval_exact_match`.
    """

    def __init__(self, model, tokenizer, args: TrainingArguments, data_args: DataArguments,
                 train_dataset=None, eval_items: dict[str, Sequence[Prepared]] | None = None):
        fixed = data_args.pad_to_max_length and args.torch_compile
        collator = DataCollatorForSeq2Seq(
            tokenizer, model=model, padding="max_length" if fixed else "longest",
            max_length=data_args.max_source_length if fixed else None,
            pad_to_multiple_of=8 if args.fp16 or args.bf16 else None)
        super().__init__(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_items or {},
                         data_collator=collator, processing_class=tokenizer, callbacks=[_Report()])
        for module in model.modules():  # T5's encoder and decoder hold copies of the config that Trainer sets this in
            if hasattr(module, "config") and hasattr(module.config, "use_cache"):
                module.config.use_cache = args.use_cache  # training fills no cache; generation asks for its own
        self.remove_callback(transformers.trainer_callback.PrinterCallback)
        self.generation_cap = args.generation_max_length or data_args.max_target_length
        self.max_source_length = data_args.max_source_length
        self._empty_evaluations = 0

    def evaluate(self, eval_dataset: dict[str, Sequence[Prepared]] | None = None, ignore_keys=None,
                 metric_key_prefix: str = "eval") -> dict[str, float]:
        """Generate for every evaluation set and score it; see the class for the keys of the result."""
        items = self.eval_dataset if eval_dataset is None else eval_dataset
        result, by_item, empty = {}, {}, True
        for item, sets in items.items():
            scores = []
            for prepared in sets:
                scores.append(self._evaluate_set(prepared))
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
                    f"{self.state.global_step}); with --fp16 use --bf16 True or float32, else lower --learning_rate")
        return result

    def _evaluate_set(self, prepared: Prepared) -> dict[str, float]:
        self._gen_kwargs = {"max_length": prepared.generation_length(self.generation_cap), "use_cache": True,
                            "num_beams": self.args.generation_num_beams or 1, "do_sample": False}
        self.compute_metrics = partial(self._score, prepared)
        self.gather_function = self.accelerator.gather
        loader = self._evaluation_loader(prepared)
        output = self.evaluation_loop(loader, prepared.template.item, prediction_loss_only=False, metric_key_prefix="x")
        return {name.removeprefix("x_"): value for name, value in output.metrics.items()
                if name != "x_model_preparation_time"}

    def _evaluation_loader(self, prepared: Prepared):
        """Batches of rows of like length: as many as take no more room than --per_device_eval_batch_size longest rows.

        Several processes share out batches of equal size, so that there the number of rows is fixed.
        """
        dataset = prepared.dataset.select_columns(["input_ids", "labels"])
        if self.args.world_size > 1:
            return self.get_eval_dataloader(dataset)
        room = self.args.eval_batch_size * self.max_source_length, self.args.eval_batch_size * self.generation_cap
        outputs = self._gen_kwargs["max_length"]
        batches, start = [], 0
        while start < len(dataset):  # longest rows first: the first row of a batch is its longest
            size = max(1, min(room[0] // len(dataset[start]["input_ids"]),
                              room[1] // max(outputs, prepared.counts["longest_target"])))
            batches.append(range(start, min(start + size, len(dataset))))
            start += size
        return self.accelerator.prepare(torch.utils.data.DataLoader(
            dataset, batch_sampler=batches, collate_fn=self.data_collator, pin_memory=self.args.dataloader_pin_memory,
            num_workers=self.args.dataloader_num_workers))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **gen_kwargs):
        """Return (None, generated ids, [batch, 2]: summed negative log-likelihood and number of each row's labels).

        The sums make the loss exact for every batch size and order: evaluation rows come sorted by length.
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]
        source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), self.compute_loss_context_manager(), self.accelerator.autocast():
            if not getattr(getattr(self.model, "active_peft_config", None), "is_prompt_learning", False):
                # The encoder is most of the cost: run it once for both the loss and the generation.
                encoded = self.model.get_encoder()(**source)
                source = {"encoder_outputs": encoded, "attention_mask": source["attention_mask"]}
            logits = model(**source, labels=labels).logits
            generated = self.model.generate(**source, **self._gen_kwargs)
        loss = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=-100,
                                                 reduction="none")
        return None, generated, torch.stack([loss.sum(1), (labels != -100).sum(1).to(loss.dtype)], dim=1)

    def _score(self, prepared: Prepared, output: transformers.EvalPrediction) -> dict[str, float]:
        count = len(prepared.dataset)  # several processes fill the last batch up with repeated rows
        pad = self.processing_class.pad_token_id
        generated = np.where(output.predictions[:count] == -100, pad, output.predictions[:count])
        texts = [t.strip() for t in self.processing_class.batch_decode(generated, skip_special_tokens=True)]
        nll, tokens = output.label_ids[:count].sum(axis=0)
        return metrics.compute(prepared.metrics, texts, prepared.dataset["references"],
                               () if isinstance(prepared.template.answer_choices, str)
                               else prepared.template.answer_choices) | {
            "loss": float(nll / tokens),
            "gen_len": float((generated[:, 1:] != pad).sum(axis=1).mean()),  # the start token is not counted
            "empty": not any(texts),
        }

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
