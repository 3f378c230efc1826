"""Find and load the tasks of a folder: names, globs, lists of names, main metrics."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from src.cli import InputError, did_you_mean
from src.names import task_of_template
from src.tasks.natural_instructions import load_natural_instructions
from src.tasks.task import Task
from src.tasks.yaml_file import load_yaml


def task_names(task_dir: str | Path) -> list[str]:
    """Names of all tasks in `task_dir`, sorted."""
    directory = Path(task_dir)
    if not directory.is_dir():
        raise InputError(f"--task_dir {task_dir}: no such folder")
    return sorted({p.stem for p in directory.iterdir() if p.suffix in (".yaml", ".json")})


def expand_names(patterns: Iterable[str], task_dir: str | Path) -> list[str]:
    """Expand names, globs (`demo_*`) and `@file` (names separated by white space) to task names, in order.

    Raises InputError for an unknown name, a glob or file that gives nothing, and a task named twice.
    """
    known, names = task_names(task_dir), []
    for pattern in patterns:
        if pattern.startswith("@"):
            try:
                found = Path(pattern[1:]).read_text(encoding="utf-8").split()
            except OSError as error:
                raise InputError(f"{pattern}: cannot read the list of tasks: {error.strerror}") from error
        elif any(sign in pattern for sign in "*?["):
            found = [name for name in known if fnmatchcase(name, pattern)]
        else:
            found = [pattern]
        if not found:
            raise InputError(f"'{pattern}' gives no task {did_you_mean(pattern, known)}")
        names += found
    for name in names:
        if name not in known:
            raise InputError(f"unknown task '{name}' in {task_dir}: {did_you_mean(name, known)}")
        if names.count(name) > 1:
            raise InputError(f"task '{name}' is given {names.count(name)} times; each task may be named once")
    return names


def load_task(name: str, task_dir: str | Path) -> Task:
    """Load and validate one task; raise InputError naming file, line and field."""
    if name not in task_names(task_dir):
        raise InputError(f"unknown task '{name}' in {task_dir}: {did_you_mean(name, task_names(task_dir))}")
    path = Path(task_dir) / f"{name}.yaml"
    return load_yaml(path) if path.exists() else load_natural_instructions(Path(task_dir) / f"{name}.json")


def main_metrics(items: list[str], task_dir: str | Path) -> dict[str, str]:
    """Each item's main metric: the first one of its task."""
    tasks, known = {}, set(task_names(task_dir))
    for item in items:
        tasks[item] = item if item in known else task_of_template(item) or item
    try:
        return {item: load_task(task, task_dir).metrics[0] for item, task in tasks.items()}
    except InputError as error:
        raise InputError(f"{error}\nEach item's main metric is in its task file; --metric names one for all") from error
