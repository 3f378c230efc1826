"""What is known of a task, and the item: what is trained and evaluated as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.cli import InputError
from src.metrics import metric_names
from src.tasks.template import NO_INSTRUCTION, Template

# The fixed families of tasks; a task file names its own by index (`group: 2`).
GROUPS = (
    "sentiment",
    "similarity and paraphrase",
    "natural language inference",
    "reading comprehension",
    "open-domain question answering",
    "coreference",
    "summarisation",
    "data to text",
)
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Source:
    """Where rows may come from on the hub; a loading script of the main branch is parquet at refs/convert/parquet."""

    path: str
    config: str | None = None
    revision: str | None = None

    @property
    def label(self) -> str:
        details = ", ".join(filter(None, (self.config, self.revision)))
        return self.path + (f" ({details})" if details else "")


@dataclass(frozen=True)
class Task:
    """All that is known of a task. `metrics[0]` is its main metric; exact_match is always computed as well."""

    name: str
    description: str
    sources: tuple[Source, ...]
    splits: Mapping[str, str]  # train | validation | test -> the source's split; test only where it has labels
    rows: Mapping[str, int]  # expected number of rows of a split at the source
    fields: tuple[str, ...]  # input columns, in the order of the bare input
    metrics: tuple[str, ...]
    templates: tuple[Template, ...]
    path: Path
    group: int | None = None
    bare: Template = field(repr=False, default=None)  # template -1
    embedded: Mapping[str, Sequence[dict]] | None = field(repr=False, default=None)  # rows in the task file, by split

    def template(self, index: int) -> Template:
        """Return the template at `index`; raise InputError where there is none."""
        if index == NO_INSTRUCTION:
            return self.bare
        if not 0 <= index < len(self.templates):
            raise InputError(
                f"--template_idx {index}: task '{self.name}' has templates 0 to {len(self.templates) - 1}, "
                f"and {NO_INSTRUCTION} for the bare input without instruction ({self.path})"
            )
        return self.templates[index]


@dataclass(frozen=True)
class Item:
    """What is trained and evaluated as one: a task under its chosen templates, or a single template."""

    name: str
    task: Task
    templates: tuple[Template, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that generated answers yield."""
        names = [metric_names(self.task.metrics, template.answer_choices) for template in self.templates]
        return tuple(dict.fromkeys(name for some in names for name in some))

    @property
    def has_choices(self) -> bool:
        """Whether all its templates have answer choices."""
        return all(template.answer_choices for template in self.templates)


def instruction_items(task: Task, indices: Sequence[int]) -> list[Item]:
    """One item per template of one task."""
    templates = [task.template(index) for index in indices]
    return check_distinct([Item(template.item, task, (template,)) for template in templates])


def task_items(tasks: Sequence[Task], indices: Sequence[int]) -> list[Item]:
    """One item per task, each under the same template indices."""
    return check_distinct([Item(task.name, task, tuple(task.template(index) for index in indices)) for task in tasks])


def check_distinct(items: list[Item]) -> list[Item]:
    """Return `items`; raise InputError where one is named like another or like a template of another's task.

    Scores are kept by these names: `news_0` would be the task of that name and template 0 of the task `news`.
    """
    owners: dict[str, Item] = {}
    for item in items:
        if owners.setdefault(item.name, item) is not item:
            raise InputError(f"'{item.name}' is named twice; each item may be there once")
    for item in items:
        for template in (*item.task.templates, item.task.bare):
            other = owners.get(template.item, item)
            if other.task is not item.task:
                raise InputError(f"'{template.item}' is both a task ({other.task.path}) and template {template.index} "
                                 f"of task '{item.task.name}' ({item.task.path}): rename or leave out one of them")
    return items
