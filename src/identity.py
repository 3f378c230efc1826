"""What names a run: which flags change its result, hashes of settings and of content, the key of a subset."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

NO_EFFECT = frozenset({
    # names, places and logs
    "output_dir", "overwrite_output_dir", "run_name", "save_name", "results_dir", "task_dir", "cache_dir",
    "overwrite_cache", "disable_tqdm", "report_to", "resume_from_checkpoint", "local_rank",
    # which model is loaded at the end, and what is evaluated in between, does not depend on what else is saved
    "save_steps", "save_strategy", "save_total_limit", "save_only_model",
    # speed and memory
    "per_device_eval_batch_size", "pad_to_max_length", "use_cpu",
    # not flags: run records hold them, they follow from per_device_train_batch_size and per_device_eval_batch_size
    "train_batch_size", "eval_batch_size",
    # part of a run's name by themselves: which items, which seeds, trained or not
    "task_name", "task_names", "template_idx", "seed", "runs", "do_train", "do_eval",
})
NO_EFFECT_PREFIXES = ("logging_", "log_", "hub_", "push_to_hub", "ddp_", "trackio_", "dataloader_")


def changes_result(flag: str) -> bool:
    """Whether `flag`, without its dashes, is a setting that changes what a run gives."""
    return flag not in NO_EFFECT and not flag.startswith(NO_EFFECT_PREFIXES)


def short_hash(value, digits: int = 8) -> str:
    """The first hex digits of SHA-256 over a value that JSON can hold; what it cannot hold counts as its `str`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:digits]


def config_hash(data_args, model_args, args) -> str:
    """Hash over all settings that change what a run gives: not the seed, nor the items and their rows."""
    adapters = {name for name in dataclasses.asdict(model_args) if name.startswith("lora_")} | {"num_virtual_tokens"}
    used = ({name for name in adapters if name.startswith("lora_")} if model_args.train_lora else
            {"num_virtual_tokens"} if model_args.train_prefix or model_args.train_prompt_tuning else set())
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    settings = {name: value for name, value in args.to_dict().items() if value != defaults.get(name)}
    settings |= dataclasses.asdict(data_args) | dataclasses.asdict(model_args) | {"processes": args.world_size}
    return short_hash({name: value for name, value in settings.items()
                       if changes_result(name) and name not in adapters - used} | {"do_train": args.do_train})


def settings_of(child: dict[str, list[str]]) -> dict[str, str]:
    """The children's flags that change a result, in words; numbers in one spelling (5e-5 is 5e-05)."""
    def spell(value: str) -> str:
        try:
            return f"{float(value)!r}".removesuffix(".0")
        except ValueError:
            return value

    return {name: " ".join(map(spell, values)) or "True" for name, values in sorted(child.items())
            if changes_result(name)}


def joint_hash(hashes: Iterable[str]) -> str:
    """One content hash of an item from those of its templates."""
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:8]


def subset_key(settings: Mapping[str, str], members: Sequence[tuple[str, str]]) -> str:
    """Name of a subset of a sweep, a hash of all that changes its result: settings, members with content hashes."""
    return short_hash([settings, members], 16)
