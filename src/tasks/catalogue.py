"""Find and load the tasks of a folder: names, globs, lists of names, main metrics."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from src.cli import InputError, did_you_mean
from src.files import read_text
from src.names import check_name, task_of_template
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

    Raises InputError for an unknown name, one against the rule of names, a glob or file that gives nothing, and a task
    named twice.
    """
    known, names = task_names(task_dir), []
    for pattern in patterns:
        if pattern.startswith("@"):
            found = read_text(Path(pattern[1:]), f"{pattern}: cannot read the list of tasks").split()
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
        task_file(name, task_dir)
    return names


def task_file(name: str, task_dir: str | Path) -> Path:
    """The file of a task; raise InputError that names the file where its name is against the rule."""
    path = Path(task_dir) / f"{name}.yaml"
    path = path if path.exists() or path.is_symlink() else path.with_name(f"{name}.json")
    check_name(f"{path}: the task name", name)
    return path


def load_task(name: str, task_dir: str | Path) -> Task:
    """Load and validate one task; raise InputError naming file, line and field."""
    if name not in task_names(task_dir):
        raise InputError(f"unknown task '{name}' in {task_dir}: {did_you_mean(name, task_names(task_dir))}")
    path = task_file(name, task_dir)
    return load_yaml(path) if path.suffix == ".yaml" else load_natural_instructions(path)


def main_metrics(items: list[str], task_dir: str | Path) -> dict[str, str]:
    """Each item's main metric: the first one of its task."""
    known = set(task_names(task_dir))
    tasks = {item: task_of_template(item, known) or item for item in items}
    try:
        return {item: load_task(task, task_dir).metrics[0] for item, task in tasks.items()}
    except InputError as error:
        raise InputError(f"{error}\nEach item's main metric is in its task file; --metric names one for all") from error
