"""Tokenizer, model and adapters.

A model is a name on the hub, a folder with a whole model (each checkpoint of a full training is one), or a folder with
a LoRA adapter, which names its base model. Code that comes with a model is never run.
"""

import contextlib
import difflib
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.pytorch_utils import Conv1D

from src.cli import InputError, did_you_mean
from src.tasks.rows import check_hub
from src.training import families
from src.training.families import Family
from src.training.flags import ModelArguments

log = logging.getLogger(__name__)
# Query and value projections by their usual names, for types of models that PEFT has no default for.
ATTENTION_NAMES = (("q", "v"), ("q_proj", "v_proj"), ("query", "value"))
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the output layer


def load_family(args: ModelArguments, cache_dir: str, source_prefix: str = "") -> Family:
    """The model's family with its tokenizer, an adapter's own or else its base's; checks what needs no weights.

    Raises:
        InputError: there is no such model, it writes no text, its files are not whole, or it is an adapter that cannot
            be trained on with these flags.
    """
    name, saved = args.model_name_or_path, _saved_adapter(args.model_name_or_path)
    base, where = _base(args, saved, cache_dir)
    check_hub(base)
    with _named(name, base):
        config = AutoConfig.from_pretrained(base, **where)
        own = saved is not None and (Path(name) / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(name if own else base, **where)
        try:
            generation = GenerationConfig.from_pretrained(base, **where)
        except OSError:  # older folders have none
            generation = GenerationConfig.from_model_config(config)
        family = families.choose(name, config, tokenizer, generation, source_prefix, args.chat_template,
                                 args.system_prompt)
        _check_weights(base, "model", "pytorch_model")
    if saved is not None:
        with _named(name, name):
            _check_weights(name, "adapter_model", "adapter_model")
        if args.train_lora:
            _check_same_adapter(args, saved, family)
    return family


def check_model(args: ModelArguments, family: Family, is_trained: bool, cache_dir: str) -> None:
    """Raise InputError where the model, known by its config alone, cannot be trained as the flags ask."""
    name, saved = args.model_name_or_path, _saved_adapter(args.model_name_or_path)
    dtype = _dtype(args, family)
    if is_trained and not args.trains_adapter and dtype != torch.float32:
        raise InputError(f"--model_dtype {args.model_dtype}: weights of {str(dtype).removeprefix('torch.')} are too "
                         "coarse to be trained; use float32 (--bf16 True still computes in bfloat16), or train an "
                         "adapter: --train_lora True")
    if args.train_only or (args.trains_adapter and saved is None):
        base, _ = _base(args, saved, cache_dir)
        with torch.device("meta"), _named(name, base):
            model = family.auto.from_config(family.config)
            _adapter_config(args, model, family)
            if args.train_only:
                _freeze_others(args, model)


def load_model(args: ModelArguments, cache_dir: str, family: Family):
    """Load the model in --model_dtype, with the adapter that `args` ask for, in float32.

    A saved adapter goes on being trained with --train_lora, and is merged into its base without. The embedding grows
    where it holds fewer tokens than the tokenizer.
    """
    name, saved = args.model_name_or_path, _saved_adapter(args.model_name_or_path)
    base, where = _base(args, saved, cache_dir)
    with _named(name, base):
        model = family.auto.from_pretrained(base, dtype=_dtype(args, family), **where)
    if len(family.tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(family.tokenizer))
    if saved is not None:
        import peft

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with _named(name, name), warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # else they would be random
            model = peft.PeftModel.from_pretrained(model, name, is_trainable=args.train_lora)
        if args.train_lora:
            return model
        model = model.merge_and_unload()
        for parameter in trained:  # PEFT has frozen them
            parameter.requires_grad_(True)
    if args.train_only:
        _freeze_others(args, model)
        log.info("--train_only %s: %d of %d parameters are trained", args.train_only,
                 model.num_parameters(only_trainable=True), model.num_parameters())
    adapter = _adapter_config(args, model, family)
    if adapter is None:
        return model
    import peft

    model = peft.get_peft_model(model, adapter, revision=where["revision"])
    if adapter.is_prompt_learning:
        family.place_virtual_tokens(model)
    return model


# ---- where a model comes from --------------------------------------------------------------------------------------


def _dtype(args: ModelArguments, family: Family) -> torch.dtype:
    """Of the weights; auto is what the model's config says, and float32 where it says nothing."""
    return family.config.dtype or torch.float32 if args.model_dtype == "auto" else getattr(torch, args.model_dtype)


def _saved_adapter(name: str):
    """The config of the LoRA adapter in the folder `name`; None where that is none."""
    if not (Path(name) / "adapter_config.json").is_file():
        return None
    import peft

    with _named(name, name):
        config = peft.PeftConfig.from_pretrained(name)
    if config.peft_type != peft.PeftType.LORA:
        raise InputError(f"--model_name_or_path '{name}': an adapter of the kind {config.peft_type}, only LORA is "
                         "allowed")
    if not config.base_model_name_or_path:
        raise InputError(f"--model_name_or_path '{name}': its adapter_config.json names no base_model_name_or_path")
    return config


def _base(args: ModelArguments, saved, cache_dir: str) -> tuple[str, dict]:
    """Name of the whole model, and how `from_pretrained` gets it."""
    name, revision = args.model_name_or_path, args.model_revision
    if saved is not None:
        name, revision = saved.base_model_name_or_path, saved.revision or revision
    return name, {"revision": revision, "cache_dir": f"{cache_dir}/hub", "trust_remote_code": False}


@contextlib.contextmanager
def _named(name: str, part: str) -> Iterator[None]:
    """Turn an error about `part`, which is `name` or its base model, into one line with the flag.

    The libraries raise errors of any type for files that are broken.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        where = f"--model_name_or_path '{name}'" + ("" if part == name else f": an adapter of '{part}'")
        reason = (str(error).strip().partition("\n")[0] or type(error).__name__).removesuffix(".")
        if Path(part).is_dir():
            raise InputError(f"{where}: no model that can be loaded: {reason}") from error
        missing = Path(part)
        while not missing.parent.is_dir():
            missing = missing.parent
        hint = did_you_mean(str(missing), [path for path in missing.parent.iterdir() if path.is_dir()], shown=0)
        of_hub = f", and the hub gives no such model: {reason}" if HUB_NAME.fullmatch(part) else ""
        raise InputError(f"{where}: there is no folder {missing}{of_hub}{hint and '; ' + hint}") from error


def _check_weights(name: str, stem: str, old_stem: str) -> None:
    """Raise an error where the folder `name` holds no weights, or a file that was cut short."""
    import safetensors

    folder = Path(name)
    if not folder.is_dir():
        return
    found = list(folder.glob(f"{stem}*.safetensors"))
    if not found and not any(folder.glob(f"{old_stem}*.bin")):
        raise InputError(f"--model_name_or_path '{name}': no weights there ({stem}.safetensors or {old_stem}.bin)")
    for path in found:
        with safetensors.safe_open(path, "pt"):  # reads the header, and compares it with the size of the file
            pass


def _freeze_others(args: ModelArguments, model) -> None:
    """Leave only the parameters of --train_only to be trained; raise InputError where that fits none."""
    found = False
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(args.train_only, name) is not None)
        found |= parameter.requires_grad
    if not found:
        raise InputError(f"--train_only '{args.train_only}': it is found in no name of the model's parameters; nearest "
                         f"are {', '.join(_nearest(args.train_only, [name for name, _ in model.named_parameters()]))}")


def _nearest(wanted: str, names: Sequence[str], count: int = 3) -> list[str]:
    """The names of parameters in which some parts, as many as `wanted` has, are most like it."""
    pieces, found = wanted.count(".") + 1, {}
    for name in names:
        parts = name.split(".")
        for start in range(max(1, len(parts) - pieces + 1)):
            found.setdefault(".".join(parts[start:start + pieces]), name)
    near = difflib.get_close_matches(re.sub(r"[\\^$]", "", wanted), found, n=len(found), cutoff=0)
    return list(dict.fromkeys(found[each] for each in near))[:count]


# ---- adapters ------------------------------------------------------------------------------------------------------


def _adapter_config(args: ModelArguments, model, family: Family):
    if not args.trains_adapter:
        return None
    import peft

    if args.train_lora:
        return peft.LoraConfig(task_type=family.task_type, r=args.lora_rank, lora_alpha=args.lora_alpha,
                               lora_dropout=args.lora_dropout, target_modules=_lora_targets(args, model),
                               fan_in_fan_out=any(isinstance(layer, Conv1D) for _, layer in _linear_layers(model)))
    if args.train_prefix:
        return peft.PrefixTuningConfig(task_type=family.task_type, num_virtual_tokens=args.num_virtual_tokens)
    # Some models embed in fewer dimensions than they compute in, which PEFT would take for the width of the vectors.
    return peft.PromptTuningConfig(task_type=family.task_type, num_virtual_tokens=args.num_virtual_tokens,
                                   token_dim=model.get_input_embeddings().embedding_dim)


def _linear_layers(model) -> list[tuple[str, torch.nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]


def _check_same_adapter(args: ModelArguments, saved, family: Family) -> None:
    """Raise InputError where the flags ask for another adapter than the saved one that is to be trained on."""
    import peft
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known

    with torch.device("meta"):
        model = family.auto.from_config(family.config)
    linear = {name for name, module in _linear_layers(model) if module is not model.get_output_embeddings()}

    def layers(targets: str | Sequence[str]) -> set[str]:
        """By name; a saved adapter may name each, or what they end in, or all by a regular expression."""
        config = peft.LoraConfig(target_modules=targets)
        return linear if targets == [ALL_LINEAR] else {
            name for name, _ in model.named_modules() if check_target_module_exists(config, name)}

    there, model_type = layers(saved.target_modules), family.config.model_type
    usual = [known[model_type]] if model_type in known else ATTENTION_NAMES
    asked = [args.lora_target_modules] if args.lora_target_modules else usual
    settings = [(name, [getattr(args, f"lora_{name}")], [value]) for name, value in (
        ("rank", saved.r), ("alpha", saved.lora_alpha), ("dropout", saved.lora_dropout))]
    if there not in map(layers, asked):
        settings.append(("target_modules", asked[0], [ALL_LINEAR] if there == linear else sorted(
            {name.rpartition(".")[2] for name in there})))
    for name, wanted, own in settings:
        if wanted != own:
            wanted, own = (" ".join(map(str, values)) for values in (wanted, own))
            raise InputError(f"--lora_{name} {wanted}: the adapter in {args.model_name_or_path}, which --train_lora "
                             f"True trains on, has --lora_{name} {own}")


def _lora_targets(args: ModelArguments, model) -> list[str] | str | None:
    """Layers that get LoRA: the user's, else None where PEFT knows the type of model, else the usual names."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known

    linear = {name.rpartition(".")[2] for name, _ in _linear_layers(model)}
    if args.lora_target_modules == [ALL_LINEAR]:
        return ALL_LINEAR
    if args.lora_target_modules:
        for name in args.lora_target_modules:
            if name not in linear:
                raise InputError(f"--lora_target_modules: the model has no linear layer '{name}'; "
                                 f"{did_you_mean(name, [*linear, ALL_LINEAR])}")
        return args.lora_target_modules
    if model.config.model_type in known:
        return None
    for names in ATTENTION_NAMES:
        if linear.issuperset(names):
            return list(names)
    raise InputError(f"--train_lora: no usual query and value projection in {model.config.model_type}; "
                     f"name some with --lora_target_modules {did_you_mean('', linear)}")
