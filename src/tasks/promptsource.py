"""Templates of promptsource (Bach et al., 2022): a task file names them by `templates_from`."""

from pathlib import Path

import jinja2
import yaml

from src.cli import InputError
from src.metrics import colliding
from src.names import plain_name
from src.tasks.read import compose_yaml
from src.tasks.sandbox import compile_template, variables
from src.tasks.template import Template


class _PromptsourceLoader(yaml.SafeLoader):
    """Reads promptsource's `!Template` and `!TemplateMetadata` as plain mappings."""


_PromptsourceLoader.add_multi_constructor(
    "!Template", lambda loader, _, node: loader.construct_mapping(node, deep=True))


def load_promptsource(task: str, path: Path) -> list[Template]:
    """Templates of a promptsource `templates.yaml` (Bach et al., 2022), sorted by name: the file has no order."""
    try:
        document = compose_yaml(path, _PromptsourceLoader)[1]
    except InputError as error:
        raise InputError(f"not a promptsource file: {error}") from error
    try:
        entries = document["templates"].values()
        templates = [_promptsource_template(task, index, entry, path)
                     for index, entry in enumerate(sorted(entries, key=lambda entry: entry["name"]))]
    except (KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a promptsource file: {type(error).__name__}: {reason}") from error
    if not templates:
        raise InputError(f"{path}: holds no template")
    return templates


def _promptsource_template(task: str, index: int, entry: dict, path: Path) -> Template:
    whole, choices = entry["jinja"], entry.get("answer_choices") or ()
    if "|||" not in whole:
        raise InputError(f"{path}: template '{entry['name']}' has no '|||' between input and target")
    source, _, target = whole.partition("|||")
    try:
        apart = variables(source) | variables(target) == variables(whole)
    except jinja2.TemplateSyntaxError:
        apart = False
    if not apart:  # the bars stand inside an if, or the target uses what the input sets: render first, then divide
        whole = "{% set whole %}" + whole.replace("|||", "\x1e", 1) + "{% endset %}"
        source, target = (whole + "{{ whole.partition('\x1e')[" + part + "] }}" for part in "02")
    if choices and "{" not in choices:
        choices = tuple(choice.strip() for choice in choices.split("|||"))
        if alike := colliding(choices):
            raise InputError(f"{path}: template '{entry['name']}': its answer_choices '{alike[0]}' and '{alike[1]}' "
                             "are one answer to the metrics")
    elif choices and "|||" not in choices:
        raise InputError(f"{path}: template '{entry['name']}' has no '|||' between its answer_choices")
    try:
        for text in (source, target, choices):
            compile_template(text) if isinstance(text, str) else None
    except Exception as error:  # Jinja's and, for what is nested too deeply, Python's own
        message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: template '{entry['name']}' does not parse: {message}") from error
    return Template(task, index, plain_name(entry["name"]), source.strip(), target.strip(), choices)
