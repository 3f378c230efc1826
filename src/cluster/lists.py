"""Lists of items as files, a cluster or a subset a line, and the command that trains them."""

import argparse
from pathlib import Path

from src import subsets
from src.cli import results_flags
from src.files import write_whole
from src.names import task_of_template
from src.tasks.catalogue import task_names


def read_clusters(flag: str, name: str, folder: str) -> list[list[str]]:
    """The clusters of the file that `flag` names, by path or as <folder>/<name>.txt."""
    return [list(cluster) for cluster in subsets.read_clusters(subsets.cluster_file(flag, name, folder))]


def write_lines(path: str | Path, lines: list[list[str]]) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(" ".join(line) + "\n" for line in lines))
    return path


def sweep_command(items: tuple[str, ...], args: argparse.Namespace, subsets_file: Path | str) -> str:
    """The command that trains the subsets of a file into the results of `args`."""
    known = task_names(args.task_dir) if Path(args.task_dir).is_dir() else []  # one may be called squad_1
    tasks = {task_of_template(item, known) for item in items}
    of_one_task = len(tasks) == 1 and None not in tasks
    script = f"train_sample_instructions_lora.py --dataset {min(tasks)}" if of_one_task else (
        f"train_sample_tasks.py --task_names {' '.join(items)}")
    return (f"python {script} --subsets_file {subsets_file} --task_set_name {args.save_name} "
            f"{results_flags(args.save_name, args.results_dir)}\n"
            "  and the trainings' flags of the sweep: --model_name_or_path, --max_steps, --runs, --device, ...")
