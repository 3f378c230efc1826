"""`--check True`: look at everything that can be known before a training, then print what names it, as JSON.

A sweep runs it once for all its items, as the judge of the flags it passes on.
"""

import json

from src.cli import InputError
from src.identity import ANSWER
from src.tasks.rows import render_rows
from src.training.experiment import ROLES, Experiment

FIRST_ROWS = 100  # of each item and role that are rendered and tokenised


def check_and_describe(experiment: Experiment) -> int:
    """Check the experiment and print a line of JSON: what names it, and the items' metrics.

    Raises:
        InputError: what a training would refuse.
    """
    experiment.check()
    selections = experiment.selections()
    for item in experiment.items:
        for role in experiment.roles:
            selection = selections[item.name][role]
            numbered = selection.load()[:FIRST_ROWS]
            for template in item.templates:
                template.check_columns(numbered[0][1], selection.rows.source)
                rendered, left_out = render_rows(selection, template, numbered)
                experiment.preparer.check(selection, template, rendered)
                if not rendered and len(numbered) < FIRST_ROWS:
                    raise InputError(f"{selection.rows.source}: none of its {len(numbered)} rows can serve under "
                                     f"template {template.index} of task '{item.task.name}' ({dict(left_out)})")
    print(ANSWER + json.dumps({
        "settings": experiment.identity, "config_hash": experiment.config_hash,
        "content": experiment.content(selections),
        "splits": [ROLES[role] for role in experiment.roles if role in ROLES],
        "metrics": {item.name: experiment.metrics(item) for item in experiment.items},
    }, default=str))
    return 0
