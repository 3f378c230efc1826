"""What names a run: which flags change its result, hashes of settings and of content, the key of a subset."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from src.files import write_whole

# Flags that do not change what a run gives, each by its name: one that is new in a library counts until it stands here.
WITHOUT_EFFECT = frozenset({
    # names, places and logs
    "output_dir", "overwrite_output_dir", "run_name", "save_name", "results_dir", "task_dir", "cache_dir",
    "overwrite_cache", "disable_tqdm", "report_to", "local_rank", "save_predictions", "check", "project",
    "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node",
    "log_level", "log_level_replica", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    "debug", "skip_memory_metrics", "include_num_input_tokens_seen",
    # which model is loaded at the end, and what is evaluated in between, does not depend on what else is saved
    "save_steps", "save_strategy", "save_total_limit", "save_only_model", "save_on_each_node",
    "enable_jit_checkpoint", "restore_callback_states_from_checkpoint",
    # speed and memory
    "per_device_eval_batch_size", "eval_accumulation_steps", "pad_to_max_length", "use_cpu", "torch_empty_cache_steps",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order", "ddp_find_unused_parameters", "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout",
    # not flags: run records hold them, they follow from per_device_train_batch_size and per_device_eval_batch_size
    "train_batch_size", "eval_batch_size",
    # part of a run's name by themselves: items and their content, rows, seeds; what else is evaluated
    "task_name", "task_names", "template_idx", "eval_task_names",
    "eval_template_idx", "data_dir", "seed", "runs", "do_train", "do_eval", "do_predict",
    "validation_from_train",  # which rows are trained on is part of their content
    "score_choices", "chat_template", "system_prompt", "source_prefix",  # replaced by what stands around a text
    "model_revision",  # model_name_or_path is replaced by what the two lead to
})
# When and by what the model at the end is chosen: without effect where it is the last one.
CHOICE_OF_MODEL = frozenset({"eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "metric_for_best_model",
                             "greater_is_better"})
ANSWER = "checked: "  # what the line begins with that --check prints
NO_CONTENT = ("optimizer", "scheduler", "rng_state", "trainer_state", "training_args", "README", ".git")


def short_hash(value, digits: int = 8) -> str:
    """The first hex digits of SHA-256 over a value that JSON can hold; what it cannot hold counts as its `str`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:digits]


def trained_hash(content: Mapping[str, str], members: Iterable[str]) -> str:
    """Hash of what a training on `members` was of: their content, the hash of each item."""
    return short_hash(sorted((item, content[item]) for item in members))


def settings_that_count(settings: Mapping) -> dict:
    """Of all settings of a training, by the names of their flags, those that change what it gives."""
    unused = set(WITHOUT_EFFECT)
    if not settings["train_lora"]:
        unused |= {name for name in settings if name.startswith("lora_")}
    if not settings["train_only"]:
        unused |= {"train_only"}
    if not (settings["train_prefix"] or settings["train_prompt_tuning"]):
        unused |= {"num_virtual_tokens"}
    if not (settings["load_best_model_at_end"] or settings["early_stopping_patience"]):
        unused |= CHOICE_OF_MODEL
    if settings.get("mixing") != "temperature":
        unused |= {"mixing_temperature"}
    if settings["max_steps"] > 0:
        unused |= {"num_train_epochs"}
    # What is off counts as absent: a flag that a later version adds does not rename what was trained without it.
    return {name: value for name, value in settings.items()
            if name not in unused and value is not None and value is not False and value != ""
            } | {"do_train": settings["do_train"]}


def model_content(folder: Path, cache_dir: Path) -> str:
    """Hash of the weights, config and tokenizer files of a local model, and of the base where it is an adapter of one.

    The hash of a file is kept in `cache_dir`, for as long as path, size and both times stay the same.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(NO_CONTENT))
    parts = [[path.name, _file_hash(path, cache_dir)] for path in files]
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path", "")
        parts.append(["base", model_content(Path(base), cache_dir) if Path(base).is_dir() else base])
    return short_hash(parts, 16)


def _file_hash(path: Path, cache_dir: Path) -> str:
    status = path.stat()
    stamp = [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    kept = cache_dir / "file_hashes" / short_hash(stamp, 32)
    try:
        return kept.read_text(encoding="utf-8")
    except OSError:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, found)
        return found
