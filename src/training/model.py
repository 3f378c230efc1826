"""Tokenizer, model and adapters."""

import dataclasses
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from src.cli import InputError, did_you_mean
from src.tasks.rows import check_hub
from src.training.flags import ModelArguments

# Query and value projections by their usual names, for model families that PEFT has no default for.
ATTENTION_NAMES = (("q", "v"), ("q_proj", "v_proj"), ("query", "value"))


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
