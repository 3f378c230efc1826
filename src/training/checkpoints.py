"""Which checkpoint a run goes on from: the newest whole one. One that is not is set aside, and said."""

import json
import zipfile
from pathlib import Path

import safetensors
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from src.cli import warn
from src.training.flags import TrainingArguments

OPTIMIZER = ("optimizer", "global_step")  # its state in a checkpoint, of torch and of DeepSpeed
NEEDED = ("trainer_state.json", "config.json", "adapter_config.json")  # each must be whole where it is there


def last_checkpoint(args: TrainingArguments) -> str | None:
    """The newest whole checkpoint that training can go on from, or that is at its end; None to start afresh.

    One without the optimizer's state (--save_only_model) would go on with another training than the one that was broken
    off: the run starts afresh then, and says so.
    """
    while Path(args.output_dir).is_dir() and (checkpoint := get_last_checkpoint(args.output_dir)):
        fault = what_is_broken(Path(checkpoint))
        if fault is None:
            has_optimizer = any(path.name.startswith(OPTIMIZER) for path in Path(checkpoint).iterdir())
            if has_optimizer or is_at_its_end(checkpoint, args):
                return checkpoint
            warn(f"{checkpoint} holds no optimizer state, so training starts afresh")
            return None
        with args.main_process_first(local=False):
            if Path(checkpoint).exists():  # else another process has set it aside
                place = next(place for number in range(1, 1000)
                             if not (place := Path(f"{checkpoint}.broken{number}")).exists())
                warn(f"{checkpoint} is not whole ({fault}); it is set aside as {place.name}")
                Path(checkpoint).rename(place)
    return None


def what_is_broken(checkpoint: Path) -> str | None:
    """The first file that its own reader cannot open, with the reason; None where the checkpoint is whole."""
    if not (checkpoint / "trainer_state.json").exists():  # written last
        return "trainer_state.json is missing"
    for path in sorted(checkpoint.iterdir()):
        try:
            if path.name in NEEDED:
                json.loads(path.read_text(encoding="utf-8"))
            elif path.name.endswith(".index.json"):  # of weights in several files
                named = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
                if missing := [name for name in sorted(named) if not (checkpoint / name).exists()]:
                    raise ValueError(f"{missing[0]} is missing")
            elif path.suffix == ".safetensors":
                with safetensors.safe_open(path, "pt"):  # compares the header with the size of the file
                    pass
            elif path.suffix in (".pt", ".pth", ".bin"):
                with zipfile.ZipFile(path):  # its list of contents stands at the end
                    pass
        except Exception as error:  # whatever a reader raises
            return f"{path.name}: {error}"
    if not any(path.suffix in (".safetensors", ".bin") and path.name != "training_args.bin"
               for path in checkpoint.iterdir()) and not any(checkpoint.glob("global_step*")):
        return "it holds no weights"
    return None


def is_at_its_end(checkpoint: str, args: TrainingArguments) -> bool:
    """Whether training was over, by its steps or by --early_stopping_patience, when the checkpoint was written."""
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    stopping = state.stateful_callbacks.get("EarlyStoppingCallback", {})
    waited = stopping.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return state.global_step >= state.max_steps or bool(
        args.early_stopping_patience and waited >= args.early_stopping_patience)
