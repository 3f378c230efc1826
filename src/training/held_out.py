"""What is scored once, by the model at the end, without training on it: --eval_task_names, --eval_template_idx."""

import dataclasses
from dataclasses import dataclass

from src.cli import InputError
from src.tasks.catalogue import expand_names, load_task
from src.tasks.task import Item, check_distinct, instruction_items, task_items
from src.training.experiment import Data, Experiment, report_data
from src.training.flags import InstructionArguments


@dataclass(frozen=True)
class HeldOut:
    """The held-out items, their rows and a hash of each one's content."""

    items: tuple[Item, ...]
    data: Data
    content: dict[str, str]


NOTHING = HeldOut((), {}, {})


def asked_for(experiment: Experiment) -> list[Item]:
    """The items that the flags name, those trained on among them."""
    data, items = experiment.data, experiment.items
    tasks = [load_task(name, data.task_dir) for name in expand_names(data.eval_task_names, data.task_dir)]
    indices = data.indices("eval_template_idx")
    if isinstance(data, InstructionArguments):
        return instruction_items(items[0].task, indices) + [
            item for task in tasks for item in instruction_items(task, data.indices())]
    new = [index for index in indices if index not in data.indices()]
    return task_items(tasks, data.indices()) + [other for item in items for other in instruction_items(item.task, new)]


def held_out(experiment: Experiment) -> Experiment | None:
    """The same experiment on the held-out items, evaluation alone; None where there are none.

    Raises:
        InputError: nothing is evaluated, or one of them is named like an item.
    """
    data, args = experiment.data, experiment.training
    if not (data.eval_task_names or data.eval_template_idx):
        return None
    if not (args.do_eval or args.do_predict):
        raise InputError("--eval_task_names and --eval_template_idx need --do_eval or --do_predict")
    items = tuple(item for item in asked_for(experiment) if item.name not in experiment.names)
    if not items:
        return None
    tasks = {item.task.name: item.task for item in experiment.items}
    check_distinct([*experiment.items, *(dataclasses.replace(item, task=tasks.get(item.task.name, item.task))
                                         for item in items)])
    other = experiment.of_seed(args.seed)
    object.__setattr__(other, "items", items)
    other.training.do_train = False
    return other


def prepare(experiment: Experiment) -> HeldOut:
    """Find and tokenise the rows of the held-out items."""
    other = held_out(experiment)
    if other is None:
        return NOTHING
    selections = other.selections()
    data = other.rows(selections)
    report_data(data)
    return HeldOut(other.items, data, other.content(selections))
