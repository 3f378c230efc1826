"""`--check True`: look at everything that can be known before a training, then print what names it, as JSON.

A sweep runs it once for all its items, as the judge of the flags it passes on.
"""

import json

from src.cli import InputError
from src.tasks.rows import render_rows
from src.training.experiment import Experiment

FIRST_ROWS = 100  # of each item and role that are rendered and tokenised
ANSWER = "checked: "  # what the last line of the output begins with


def check_and_describe(experiment: Experiment) -> int:
    """Check the experiment and print a line of JSON: the settings that count, their hash, the content of each item.

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
                if not render_rows(selection, template, numbered):
                    continue  # all of them without text; the whole split may hold others
    print(ANSWER + json.dumps({"settings": experiment.identity, "config_hash": experiment.config_hash,
                               "content": experiment.content(selections)}, default=str))
    return 0


def last_answer(output: str) -> dict:
    """The JSON of a check's output; raise InputError where there is none."""
    lines = [line for line in output.splitlines() if line.startswith(ANSWER)]
    if not lines:
        raise InputError(f"the check of the training's flags gave no answer:\n{output.strip()}")
    return json.loads(lines[-1].removeprefix(ANSWER))
