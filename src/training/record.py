"""What is recorded of a run beside its scores: surroundings, commit, memory, log."""

import contextlib
import importlib.metadata
import logging
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import datasets
import torch
import transformers
from transformers.integrations import TensorBoardCallback

from src.training.flags import TrainingArguments

TITLE = 60  # bytes that the items have in the name of a run that reporters show
PACKAGES = ("torch", "transformers", "datasets", "peft", "accelerate", "evaluate", "tokenizers", "numpy")


def commit() -> tuple[str, bool | None]:
    """Commit of this source tree and whether it has uncommitted changes; ("", None) outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        revision, status = (subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip()
                            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]))
    except (OSError, subprocess.CalledProcessError):
        return "", None
    return revision, bool(status)


def peak_memory_mb() -> float:
    """Peak memory in MiB: of the GPU's allocator where there is one, otherwise of the process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def describe(args: TrainingArguments) -> dict:
    """Where and with what a run that begins is done: command, commit, time, host, device, versions."""
    revision, dirty = commit()
    return {
        "command": sys.argv, "commit": revision, "dirty": dirty, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(), "processes": args.world_size, "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else "cpu",
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def set_up_logging(args: TrainingArguments) -> None:
    """Our log lines to standard output, of the first process only; the libraries' warnings stay as they are, but for
    those between libraries, about names and times that no user has chosen.
    """
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # by PEFT
    logging.getLogger("transformers.trainer_utils").addFilter(lambda record: "mtime may not" not in str(record.msg))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("src").setLevel(logging.INFO if args.process_index == 0 else logging.WARNING)
    logging.getLogger("file").propagate = False  # for what only the log file should hold
    if args.disable_tqdm:
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()


def title(items: Sequence[str], run_id: str) -> str:
    """What reporters call a run: its items, as many as have room, the number of the others, and the run's name."""
    text = " ".join(items)
    if len(text.encode()) > TITLE:
        kept = text.encode()[:TITLE].decode(errors="ignore").split(" ")[:-1] or [items[0]]
        text = " ".join(kept) + (f" +{len(items) - len(kept)}" if len(items) > len(kept) else "")
    return f"{text} {run_id}"


def name_folder(callbacks: Iterable, args: TrainingArguments, folder: Path) -> None:
    """Have TensorBoard, which knows no names, write to a folder named so, in TENSORBOARD_LOGGING_DIR or `folder`."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(Path(callback.logging_dir or folder) / args.run_name)


@contextlib.contextmanager
def reports(args: TrainingArguments) -> Iterator[None]:
    """End the run in W&B, too: else the next seed would be taken for a part of it."""
    try:
        yield
    finally:
        if "wandb" in args.report_to:
            import wandb

            wandb.finish()


@contextlib.contextmanager
def log_file(path: Path, args: TrainingArguments) -> Iterator[None]:
    """Copy log lines to the run's log file meanwhile."""
    if args.process_index != 0:
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    loggers = [logging.getLogger(), logging.getLogger("file"), logging.getLogger("transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
