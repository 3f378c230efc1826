"""What is recorded of a run beside its scores: surroundings, commit, memory, log."""

import contextlib
import importlib.metadata
import logging
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import torch
import transformers

from src.training.flags import TrainingArguments

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
    """Our log lines to standard output, of the first process only; the libraries' warnings stay as they are."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("src").setLevel(logging.INFO if args.process_index == 0 else logging.WARNING)
    logging.getLogger("file").propagate = False  # for what only the log file should hold
    if args.disable_tqdm:
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()


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
