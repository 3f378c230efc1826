"""`--check True`: look at everything that can be known before a training, then print what names it, as JSON.

A sweep runs it once for all its items, as the judge of the flags it passes on.
"""

import json

from src.cli import InputError
from src.identity import ANSWER
from src.tasks.rows import render_rows
from src.training.experiment import Experiment, splits
from src.training.held_out import asked_for, held_out

FIRST_ROWS = 100  # of each item and role that are rendered and tokenised


def check_and_describe(experiment: Experiment) -> int:
    """Check the experiment and print a line of JSON: what names it, and the items' metrics.

    Raises:
        InputError: what a training would refuse.
    """
    experiment.check()
    other, names = held_out(experiment), experiment.names
    content, tokens = _check_rows(experiment)
    contents = content | (_check_rows(other)[0] if other else {})
    print(ANSWER + json.dumps({
        "settings": experiment.identity, "config_hash": experiment.config_hash, "content": content,
        "splits": splits(experiment),
        "tokens": tokens, "metrics": {item.name: experiment.metrics(item) for item in experiment.items},
        # of what is scored without training: its content, metrics, and the item with which alone it is, or ""
        "held_out": {item.name: (contents[item.name], experiment.metrics(item),
                                 item.task.name if item.name != item.task.name in names else "")
                     for item in asked_for(experiment)},
    }, default=str))
    return 0


def _check_rows(experiment: Experiment) -> tuple[dict[str, str], dict[str, float]]:
    """Render and tokenise the first rows of each item and role; return the items' content, and their mean tokens in a
    row of the training.
    """
    selections, read = experiment.selections(), {item.name: [0, 0] for item in experiment.items}
    for item in experiment.items:
        for role in experiment.roles:
            selection = selections[item.name][role]
            numbered = selection.load()[:FIRST_ROWS]
            for template in item.templates:
                template.check_columns(numbered[0][1], selection.rows.source)
                rendered, left_out = render_rows(selection, template, numbered)
                tokens = experiment.preparer.check(selection, template, rendered)
                if role == "train":
                    read[item.name][0] += tokens
                    read[item.name][1] += len(rendered)
                if not rendered and len(numbered) < FIRST_ROWS:
                    raise InputError(f"{selection.rows.source}: none of its {len(numbered)} rows can serve under "
                                     f"template {template.index} of task '{item.task.name}' ({dict(left_out)})")
    return experiment.content(selections), {
        name: round(tokens / rows, 1) for name, (tokens, rows) in read.items() if rows}
