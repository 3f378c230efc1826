"""The flags of `python -m src.estimate` beside those of the training scripts."""

from dataclasses import dataclass

from src.cli import InputError
from src.training.flags import AT_LEAST_1, check_numbers, flag

# Put before the user's: what the training scripts ask for, and the training on all items unless that is switched off.
ALWAYS = ("--do_train", "True", "--do_eval", "True", "--predict_with_generate", "True")

MOST_DIMENSIONS = 100_000  # of a projection


@dataclass
class EstimateArguments:
    """The estimate of what training on each subset would give."""

    project_dim: int = flag(400, "Numbers that each gradient is projected to.")
    strength: int | None = flag(
        None, "Steps of descent of each small fit: how long a training it stands for (default: by --calibrate).")
    calibrate: int | None = flag(
        None, "Choose the strength, and how large each item's losses are, on that many subsets that the sweep of "
        "--save_name has truly trained (default: 5).")
    min_task_num: int | None = flag(None, "Smallest subset to estimate (default: 2).")
    max_task_num: int | None = flag(None, "Largest subset to estimate (default: --min_task_num).")
    num_samples: int | None = flag(None, "Number of subsets to estimate, drawn by --seed (default: all).")
    subsets_file: str | None = flag(None, "Estimate exactly the subsets of this file, a line each (default: none).")
    config_hash: str | None = flag(
        None, "Calibrate on the sweep's runs of this config_hash (default: all; an error if they differ).")
    content_hash: list[str] = flag(
        [], "Where an item's templates or rows were changed between trainings: calibrate on subsets of this content "
        "(default: all; an error if they differ).")

    def validate(self) -> None:
        check_numbers(self, {AT_LEAST_1: ("project_dim", "strength", "calibrate", "min_task_num", "num_samples")})
        if self.project_dim > MOST_DIMENSIONS:
            raise InputError(f"--project_dim {self.project_dim} must be at most {MOST_DIMENSIONS}")
        for way, others in (("strength", ("calibrate", "config_hash", "content_hash")),
                            ("subsets_file", ("num_samples", "min_task_num", "max_task_num"))):
            for other in others:
                if getattr(self, way) and getattr(self, other):
                    raise InputError(f"--{way} and --{other} exclude each other: --{other} would have no effect")
        self.calibrate = self.calibrate or 5
        self.min_task_num = self.min_task_num or 2
