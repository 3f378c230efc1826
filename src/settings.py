"""Which flags of a training do not change its result. All others are part of what names a run or a subset."""

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
