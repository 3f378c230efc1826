"""The flags of `python -m src.estimate` beside those of the training scripts."""

from dataclasses import dataclass
from typing import Literal

from src.cli import InputError
from src.training.flags import at_least, flag


@dataclass
class EstimateArguments:
    """The estimate of what training on each subset would give."""

    start_from: str | None = flag(
        None, "Folder of a checkpoint to take the gradients at (default: train on all items first, for --max_steps).")
    project_dim: int = flag(
        400, "Numbers that each gradient is projected to; 0 keeps all of them, where memory allows.")
    fit: Literal["descent", "ridge"] = flag(
        "descent", "How far each small fit goes: steps of gradient descent, or down to the minimum under a ridge "
        "penalty.")
    strength: float | None = flag(
        None, "Number of steps of --fit descent, or penalty of --fit ridge as a multiple of the largest curvature of "
        "an item's loss (default: by --calibrate).")
    calibrate: int = flag(
        5, "Choose the strength, and how large each item's losses are, on that many subsets that the sweep of "
        "--save_name has truly trained; without any, scan over the strengths and take the one that shows the clearest "
        "structure.")
    min_task_num: int = flag(2, "Smallest subset to estimate.")
    max_task_num: int | None = flag(None, "Largest subset to estimate (default: --min_task_num).")
    num_samples: int | None = flag(None, "Number of subsets to estimate, drawn by --seed (default: all).")
    subsets_file: str | None = flag(None, "Estimate exactly the subsets of this file, a line each.")
    config_hash: str | None = flag(
        None, "Calibrate on the sweep's runs of this config_hash (default: all; an error if they differ).")

    def validate(self) -> None:
        for name, least in (("project_dim", 0), ("calibrate", 0), ("min_task_num", 1), ("num_samples", 1)):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), least)
        if self.strength is not None and (
                not self.strength > 0 or (self.fit == "descent" and self.strength % 1)):
            raise InputError(f"--strength {self.strength:g} must be " + (
                "a whole number of steps, 1 or more" if self.fit == "descent" else "above 0"))
