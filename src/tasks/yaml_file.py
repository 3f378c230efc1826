"""A task in YAML: <task_dir>/<task>.yaml, its errors with their line (data/tasks holds the catalogue)."""

from pathlib import Path
from typing import Any

import yaml

from src.cli import InputError, did_you_mean
from src.metrics import METRICS, NEED_CHOICES, colliding
from src.names import RULE, is_name
from src.tasks.promptsource import load_promptsource
from src.tasks.read import compose_yaml
from src.tasks.sandbox import compile_expression, compile_template
from src.tasks.task import GROUPS, SPLITS, Source, Task
from src.tasks.template import NO_INSTRUCTION, Template

_FIELDS = {"description", "group", "sources", "splits", "rows", "fields", "answer_choices", "metrics", "target",
           "references", "bare", "templates", "templates_from"}


class _Document:
    """A parsed YAML file that remembers the line of each field, for error messages."""

    def __init__(self, path: Path):
        self.path = path
        self.root, self.data = compose_yaml(path)
        if not isinstance(self.data, dict):
            raise InputError(f"{path}, line 1: a task file is a mapping of fields")

    def line(self, keys: tuple) -> int:
        node, line = self.root, 1
        for key in keys:
            if isinstance(node, yaml.MappingNode):
                pairs = [(k, v) for k, v in node.value if k.value == key]
                if not pairs:
                    break
                line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
            elif isinstance(node, yaml.SequenceNode) and key < len(node.value):
                node = node.value[key]
                line = node.start_mark.line + 1
        return line

    def fail(self, keys: tuple, message: str):
        name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
        raise InputError(f"{self.path}, line {self.line(keys)}: {name or 'file'}: {message}")

    def only(self, keys: tuple, mapping: dict, allowed: set[str]) -> None:
        for key in mapping:
            if key not in allowed:
                self.fail((*keys, key), f"unknown field; {did_you_mean(str(key), allowed)}")

    def strings(self, keys: tuple, values: Any) -> tuple[str, ...]:
        if not isinstance(values, list) or not values:
            self.fail(keys, "must be a list that is not empty")
        for i, value in enumerate(values):
            if not isinstance(value, str):
                self.fail((*keys, i), f"must be text, found {value!r}; put yes, no and numbers in quotes")
        return tuple(values)

    def jinja(self, keys: tuple, source: Any, expression: bool = False) -> str:
        if not isinstance(source, str) or not source.strip():
            self.fail(keys, f"must be text that is not empty, found {source!r}")
        try:
            (compile_expression if expression else compile_template)(source)  # parsing alone lets unknown filters pass
        except Exception as error:  # Jinja's and, for what is nested too deeply, Python's own
            message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            self.fail(keys, f"template does not parse: {message}")
        return source


def load_yaml(path: Path) -> Task:
    document = _Document(path)
    data = document.data
    document.only((), data, _FIELDS)
    for key in ("description", "fields", "target", "metrics"):
        if key not in data:
            document.fail((), f"field '{key}' is missing")
    fields = document.strings(("fields",), data["fields"])
    metrics = document.strings(("metrics",), data["metrics"])
    for i, metric in enumerate(metrics):
        if metric not in METRICS:
            document.fail(("metrics", i), f"unknown metric '{metric}'; {did_you_mean(metric, METRICS)}")
    group = data.get("group")
    if group is not None and group not in range(len(GROUPS)):
        document.fail(("group",), f"must be 0 to {len(GROUPS) - 1} ({', '.join(GROUPS)}), found {group!r}")
    sources = _sources(document)
    splits = _by_split(document, "splits", str, {"train": "train", "validation": "validation"})
    for split in ("train", "validation"):
        if split not in splits:
            document.fail(("splits",), f"'{split}' is missing")
    templates = _templates(document)
    bare = data.get("bare", "\n".join(f"{name}: {{{{ {name} }}}}" for name in fields)
                    if len(fields) > 1 else f"{{{{ {fields[0]} }}}}")
    bare = _template(document, (), NO_INSTRUCTION, "none", {"input": bare})
    for i, metric in enumerate(metrics):
        lacking = [t.name for t in (bare, *templates) if not t.answer_choices or isinstance(t.answer_choices, str)]
        if metric in NEED_CHOICES and lacking:
            document.fail(("metrics", i), f"{metric} needs fixed answer_choices; template '{lacking[0]}' has none")
    return Task(
        name=path.stem, description=str(data["description"]).strip(), sources=sources, splits=splits,
        rows=_by_split(document, "rows", int, {}), fields=fields, metrics=metrics, templates=tuple(templates),
        path=path, group=group, bare=bare,
    )


def _sources(document: _Document) -> tuple[Source, ...]:
    sources = []
    for i, source in enumerate(document.data.get("sources") or []):
        if not isinstance(source, dict) or "path" not in source:
            document.fail(("sources", i), "must have a path")
        document.only(("sources", i), source, {"path", "config", "revision"})
        for key, value in source.items():
            if not isinstance(value, str):
                document.fail(("sources", i, key), f"must be text, found {value!r}")
        sources.append(Source(**source))
    return tuple(sources)


def _by_split(document: _Document, key: str, kind: type, default: dict) -> dict:
    """The field `key`, a mapping from train, validation and test to values of one kind."""
    found = document.data.get(key, default)
    if not isinstance(found, dict):
        document.fail((key,), "must be a mapping")
    document.only((key,), found, set(SPLITS))
    for split, value in found.items():
        if type(value) is not kind:
            document.fail((key, split), f"must be {kind.__name__}, found {value!r}")
    return found


def _template(document: _Document, keys: tuple, index: int, name: str, own: dict) -> Template:
    """A template; its own target, answer choices and references go before the task's."""
    values = {key: own.get(key, document.data.get(key)) for key in ("target", "answer_choices", "references")}
    place = {key: (*keys, key) if key in own else (key,) for key in values}
    choices = values["answer_choices"]
    if isinstance(choices, str):
        choices = document.jinja(place["answer_choices"], choices, expression=True)
    elif choices is not None:
        choices = document.strings(place["answer_choices"], choices)
        if alike := colliding(choices):
            document.fail(place["answer_choices"], f"'{alike[0]}' and '{alike[1]}' are one answer to the metrics, "
                          "which look at neither case nor punctuation at the ends of words")
    references = values["references"]
    if references is not None:
        references = document.jinja(place["references"], references, expression=True)
    return Template(
        document.path.stem, index, name,
        document.jinja((*keys, "input") if keys else ("bare",), own["input"]),
        document.jinja(place["target"], values["target"]),
        choices or (), references,
    )


def _templates(document: _Document) -> list[Template]:
    """The templates of the file, or those that it names by `templates_from`; each has a name of its own."""
    data, path = document.data, document.path
    if ("templates" in data) == ("templates_from" in data):
        document.fail((), "needs either 'templates' or 'templates_from', a promptsource file")
    if "templates_from" in data:
        templates = load_promptsource(path.stem, path.parent / str(data["templates_from"]))
    else:
        if not isinstance(data["templates"], list) or not data["templates"]:
            document.fail(("templates",), "must be a list that is not empty")
        templates = []
        for i, own in enumerate(data["templates"]):
            keys = ("templates", i)
            if not isinstance(own, dict) or not isinstance(own.get("name"), str) or "input" not in own:
                document.fail(keys, "must have a name and an input")
            document.only(keys, own, {"name", "input", "target", "answer_choices", "references"})
            if not is_name(own["name"]):
                document.fail((*keys, "name"), f"must be one word of {RULE}; found {own['name']!r}")
            templates.append(_template(document, keys, i, own["name"], own))
    names = [t.name for t in templates]
    for i, name in enumerate(names):
        if name in names[:i]:
            document.fail(("templates", i, "name"), f"'{name}' is also the name of template {names.index(name)}")
    return templates
