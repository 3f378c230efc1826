"""Flags of the training scripts as the first code of the method and transformers 4 spelled them."""

import os

from src.cli import InputError, warn

# Old flags and what there is today. renamed: the values stay; switch: today's words, where it is on; dropped: no flag
# is needed; refused: an error where it is on, since no words say the same.
OLD_FLAGS = {
    "--evaluation_strategy": ("renamed", "--eval_strategy"),
    "--template_idxs": ("renamed", "--template_idx"),
    "--num_beams": ("renamed", "--generation_num_beams"),
    "--no_cuda": ("renamed", "--use_cpu"),
    "--warmup_ratio": ("renamed", "--warmup_steps, where a number below 1 is a share of all steps"),
    "--use_Adafactor_optm": ("switch", "--optim adafactor"),
    "--adafactor": ("switch", "--optim adafactor"),
    "--group_by_length": ("switch", "--train_sampling_strategy group_by_length"),
    "--logging_dir": ("dropped", "the environment variable TENSORBOARD_LOGGING_DIR"),
    "--use_auth_token": ("dropped", "the token of `hf auth login`, used by itself"),
    "--freeze_module": ("refused", "--train_only REGEX, which names the parameters that are trained"),
    "--freeze_layer": ("refused", "--train_only REGEX, which names the parameters that are trained"),
    "--denser_evaluation": ("refused", "--eval_strategy steps --eval_steps N, of any number of steps"),
}

SHORT = {"lr": "learning_rate", "batch_size": "per_device_train_batch_size"}  # names that the sweeps take


def translate_old_flags(arguments: list[str]) -> list[str]:
    """Put today's flags in the place of old ones, with a warning each; InputError for one that has no translation."""
    translated, i = [], 0
    while i < len(arguments):
        name, equals, value = arguments[i].partition("=")
        i += 1
        how, today = OLD_FLAGS.get(name, ("", ""))
        if how in ("", "renamed"):
            translated.append(f"{today.partition(',')[0] or name}{equals}{value}")
        elif not equals and i < len(arguments) and not arguments[i].startswith("--"):
            value, i = arguments[i], i + 1
        on = value.lower() not in (("false", "none") if how == "refused" else ("false", "f", "no", "n", "0"))
        if how == "refused" and on:
            raise InputError(f"{name} {value}".rstrip() + f": an old flag; today it is {today}")
        if how == "switch" and on and value.lower() not in ("", "true", "t", "yes", "y", "1"):
            raise InputError(f"{name} {value}: must be True or False")
        if how == "switch" and on:
            translated += today.split()
        if name == "--logging_dir":
            os.environ["TENSORBOARD_LOGGING_DIR"] = value
        if how:
            warn(f"{name} is an old flag; today it is {today}")
    return translated
