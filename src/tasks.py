"""Tasks and their templates: load, validate, find.

One file in `--task_dir` holds all that is known of a task (data/tasks/README.md shows one):
  <task>.yaml   sources, fields, answer choices, metrics, templates
  <task>.json   a Natural Instructions file: its definitions are its templates, its instances its rows

`python -m src.tasks list | show | check` is in catalogue.py.
"""

import functools
import hashlib
import json
import random
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox
import yaml

from src.errors import InputError, did_you_mean, run_as_script
from src.metrics import METRICS, NEED_CHOICES

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
NO_INSTRUCTION = -1  # template index of the bare input
NATURAL_INSTRUCTIONS_SEED = 0  # divides a Natural Instructions file's instances into splits, the same for everybody
MAX_INFERRED_CHOICES = 10  # a Natural Instructions task with at most this many distinct outputs is a classification


def _choose(values: list) -> Any:
    """promptsource's `choice` filter, made reproducible: the same list always gives the same element."""
    return values[zlib.crc32(repr(values).encode()) % len(values)]


def _most_frequent(values: list) -> list:
    """promptsource's `most_frequent` filter: the most frequent elements, in order of first appearance."""
    top = max(map(values.count, values), default=0)
    return [value for value in dict.fromkeys(values) if values.count(value) == top]


_JINJA = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)
_JINJA.globals.update(zip=zip, len=len, enumerate=enumerate)
_JINJA.filters.update(choice=_choose, most_frequent=_most_frequent)
_compile = functools.cache(_JINJA.from_string)
_compile_expression = functools.cache(functools.partial(_JINJA.compile_expression, undefined_to_none=False))


@functools.cache
def _variables(source: str, expression: bool = False) -> frozenset[str]:
    """Names that the Jinja `source` takes from the row."""
    tree = _JINJA.parse("{{ " + source + " }}" if expression else source)
    return frozenset(jinja2.meta.find_undeclared_variables(tree)) - {"answer_choices"} - set(_JINJA.globals)


class EmptyRow(InputError):
    """A row without text: the hub's data sets hold a few. It is left out and counted."""


@dataclass(frozen=True)
class Rendered:
    """One row under one template: what the model reads, what it should write, every accepted answer."""

    input: str
    target: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """One instruction of a task. `index` is its `--template_idx`; -1 is the bare input.

    `answer_choices` is a fixed tuple, or empty (free text), or made of the row: a Jinja expression that gives a list,
    or, as promptsource has it, a Jinja template that gives text with `|||` between the choices.
    `references` is a Jinja expression that gives the list of accepted answers (default: the target alone).
    """

    task: str
    index: int
    name: str
    input: str
    target: str
    answer_choices: tuple[str, ...] | str = ()
    references: str | None = None

    @property
    def item(self) -> str:
        """Name as an item of a sweep, a CSV row and a metric key: `rte_0`, `rte_-1`."""
        return f"{self.task}_{self.index}"

    @functools.cached_property
    def hash(self) -> str:
        """Eight hex digits over everything that changes what is rendered."""
        text = json.dumps([self.input, self.target, self.answer_choices, self.references])
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @functools.cached_property
    def target_variables(self) -> frozenset[str]:
        """Columns that the target is made of: a row is unlabelled where one of them is null or negative."""
        return _variables(self.target)

    @functools.cached_property
    def variables(self) -> frozenset[str]:
        """Columns that the template reads."""
        names = self.target_variables | _variables(self.input)
        if self.references:
            names |= _variables(self.references, expression=True)
        if isinstance(self.answer_choices, str):
            names |= _variables(self.answer_choices, expression="|||" not in self.answer_choices)
        return names

    def check_columns(self, columns: Iterable[str], where: str) -> None:
        """Raise InputError where `columns` lack one that the template reads."""
        columns = list(columns)
        missing = sorted(self.variables - set(columns))
        if missing:
            raise InputError(
                f"{where}: task '{self.task}', template {self.index} ({self.name}) needs column '{missing[0]}', "
                f"which the rows lack; columns found: {', '.join(sorted(columns))}"
            )

    def is_labelled(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has a gold label: the hub marks missing ones with null, or with -1."""
        values = [row.get(name) for name in self.target_variables]
        return not any(value is None or (isinstance(value, (int, float)) and value < 0) for value in values)

    def render(self, row: Mapping[str, Any]) -> Rendered:
        """Render one row.

        Raises:
            InputError: a column is missing, the row has no gold label, or the template cannot be applied to it.
            EmptyRow: a column is null, or what is rendered is empty.
        """
        where = f"task '{self.task}', template {self.index} ({self.name})"
        missing = sorted(self.variables - row.keys())
        if missing:
            raise InputError(f"{where}: field '{missing[0]}' is missing (fields found: {', '.join(sorted(row))})")
        if not self.is_labelled(row):
            labels = ", ".join(f"{name} = {row[name]!r}" for name in sorted(self.target_variables))
            raise InputError(f"{where}: the row has no gold label ({labels})")
        for name in sorted(self.variables):
            if row[name] is None:
                raise EmptyRow(f"{where}: field '{name}' is null")
        try:
            choices = self.answer_choices
            if isinstance(choices, str) and "|||" in choices:
                choices = tuple(choice.strip() for choice in _compile(choices).render(row).split("|||"))
            elif isinstance(choices, str):
                choices = tuple(map(str, _compile_expression(choices)(row)))
            values = {**row, "answer_choices": choices}
            source = _compile(self.input).render(values).strip()
            target = _compile(self.target).render(values).strip()
            references = _compile_expression(self.references)(values) if self.references else [target]
            # dict.fromkeys: data sets repeat an answer once for each annotator
            references = tuple(dict.fromkeys(str(text).strip() for text in references))
        except Exception as error:  # whatever the expressions of a task file raise
            raise InputError(f"{where}: {error}") from error
        if not source or not target or not all(references) or not references:
            empty = "input" if not source else "target" if not target else "an accepted answer"
            raise EmptyRow(f"{where}: {empty} is empty")
        return Rendered(source, target, references)


@dataclass(frozen=True)
class Source:
    """Where rows may come from on the hub: `load_dataset(path, config, revision=revision)`."""

    path: str
    config: str | None = None
    revision: str | None = None

    @property
    def label(self) -> str:
        return self.path + (f" ({self.config})" if self.config else "")


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

    def embedded_rows(self) -> dict[str, list[dict]] | None:
        """Rows that the task file itself holds (Natural Instructions), by split; None for a YAML task."""
        if self.path.suffix != ".json":
            return None
        rows = [{"input": i["input"], "output": _as_list(i["output"])} for i in _read_json(self.path)["Instances"]]
        random.Random(NATURAL_INSTRUCTIONS_SEED).shuffle(rows)
        first, second = len(rows) * 3 // 5, len(rows) * 4 // 5
        return {"train": rows[:first], "validation": rows[first:second], "test": rows[second:]}


# ---- find ----------------------------------------------------------------------------------------------------------


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
    return _load_yaml(path) if path.exists() else _load_natural_instructions(Path(task_dir) / f"{name}.json")


# ---- YAML ----------------------------------------------------------------------------------------------------------


class _Document:
    """A parsed YAML file that remembers the line of each field, for error messages."""

    def __init__(self, path: Path):
        self.path = path
        try:
            loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
            self.root = loader.get_single_node()
            self.data = loader.construct_document(self.root) if self.root else None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise InputError(f"{path}, line {mark.line + 1 if mark else '?'}: {error.problem}") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path}: {error}") from error
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
            (_compile_expression if expression else _compile)(source)  # parsing alone lets unknown filters pass
        except jinja2.TemplateSyntaxError as error:
            self.fail(keys, f"template does not parse: {error.message}")
        return source


_FIELDS = {"description", "group", "sources", "splits", "rows", "fields", "answer_choices", "metrics", "target",
           "references", "bare", "templates", "templates_from"}


def _load_yaml(path: Path) -> Task:
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

    sources = []
    for i, source in enumerate(data.get("sources") or []):
        if not isinstance(source, dict) or "path" not in source:
            document.fail(("sources", i), "must have a path")
        document.only(("sources", i), source, {"path", "config", "revision"})
        for key, value in source.items():
            if not isinstance(value, str):
                document.fail(("sources", i, key), f"must be text, found {value!r}")
        sources.append(Source(**source))
    maps = {}
    for key, kind in (("splits", str), ("rows", int)):
        maps[key] = data.get(key, {"train": "train", "validation": "validation"} if key == "splits" else {})
        if not isinstance(maps[key], dict):
            document.fail((key,), "must be a mapping")
        document.only((key,), maps[key], set(SPLITS))
        for split, value in maps[key].items():
            if type(value) is not kind:
                document.fail((key, split), f"must be {kind.__name__}, found {value!r}")
    for split in ("train", "validation"):
        if split not in maps["splits"]:
            document.fail(("splits",), f"'{split}' is missing")

    def template(keys: tuple, index: int, name: str, own: dict) -> Template:
        """A template's own target, answer choices and references go before the task's."""
        values = {key: own.get(key, data.get(key)) for key in ("target", "answer_choices", "references")}
        place = {key: (*keys, key) if key in own else (key,) for key in values}
        choices = values["answer_choices"]
        if isinstance(choices, str):
            choices = document.jinja(place["answer_choices"], choices, expression=True)
        elif choices is not None:
            choices = document.strings(place["answer_choices"], choices)
        references = values["references"]
        if references is not None:
            references = document.jinja(place["references"], references, expression=True)
        return Template(
            path.stem, index, name,
            document.jinja((*keys, "input") if keys else ("bare",), own["input"]),
            document.jinja(place["target"], values["target"]),
            choices or (), references,
        )

    if ("templates" in data) == ("templates_from" in data):
        document.fail((), "needs either 'templates' or 'templates_from', a promptsource file")
    if "templates" in data:
        if not isinstance(data["templates"], list) or not data["templates"]:
            document.fail(("templates",), "must be a list that is not empty")
        templates = []
        for i, own in enumerate(data["templates"]):
            keys = ("templates", i)
            if not isinstance(own, dict) or not isinstance(own.get("name"), str) or "input" not in own:
                document.fail(keys, "must have a name and an input")
            document.only(keys, own, {"name", "input", "target", "answer_choices", "references"})
            if len(own["name"].split()) != 1:
                document.fail((*keys, "name"), f"must be one word without spaces, found {own['name']!r}")
            templates.append(template(keys, i, own["name"], own))
    else:
        templates = _load_promptsource(path.stem, path.parent / str(data["templates_from"]))
    names = [t.name for t in templates]
    for i, name in enumerate(names):
        if name in names[:i]:
            document.fail(("templates", i, "name"), f"'{name}' is also the name of template {names.index(name)}")

    bare = data.get("bare", "\n".join(f"{name}: {{{{ {name} }}}}" for name in fields)
                    if len(fields) > 1 else f"{{{{ {fields[0]} }}}}")
    bare = template((), NO_INSTRUCTION, "none", {"input": bare})
    for i, metric in enumerate(metrics):
        lacking = [t.name for t in (bare, *templates) if not t.answer_choices or isinstance(t.answer_choices, str)]
        if metric in NEED_CHOICES and lacking:
            document.fail(("metrics", i), f"{metric} needs fixed answer_choices; template '{lacking[0]}' has none")
    return Task(
        name=path.stem, description=str(data["description"]).strip(), sources=tuple(sources), splits=maps["splits"],
        rows=maps["rows"], fields=fields, metrics=metrics, templates=tuple(templates), path=path, group=group,
        bare=bare,
    )


# ---- other people's formats ----------------------------------------------------------------------------------------


class _PromptsourceLoader(yaml.SafeLoader):
    """Reads promptsource's `!Template` and `!TemplateMetadata` as plain mappings."""


_PromptsourceLoader.add_multi_constructor(
    "!Template", lambda loader, _, node: loader.construct_mapping(node, deep=True))


def _load_promptsource(task: str, path: Path) -> list[Template]:
    """Templates of a promptsource `templates.yaml` (Bach et al., 2022), sorted by name: the file has no order."""
    try:
        entries = yaml.load(path.read_text(encoding="utf-8"), _PromptsourceLoader)["templates"].values()
        templates = [_promptsource_template(task, index, entry, path)
                     for index, entry in enumerate(sorted(entries, key=lambda entry: entry["name"]))]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
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
        apart = _variables(source) | _variables(target) == _variables(whole)
    except jinja2.TemplateSyntaxError:
        apart = False
    if not apart:  # the bars stand inside an if, or the target uses what the input sets: render first, then divide
        whole = "{% set whole %}" + whole.replace("|||", "\x1e", 1) + "{% endset %}"
        source, target = (whole + "{{ whole.partition('\x1e')[" + part + "] }}" for part in "02")
    if choices and "{" not in choices:
        choices = tuple(choice.strip() for choice in choices.split("|||"))
    elif choices and "|||" not in choices:
        raise InputError(f"{path}: template '{entry['name']}' has no '|||' between its answer_choices")
    try:
        for text in (source, target, choices):
            _compile(text) if isinstance(text, str) else None
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"{path}: template '{entry['name']}' does not parse: {error.message}") from error
    return Template(task, index, "_".join(entry["name"].split()), source.strip(), target.strip(), choices)


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not a whole JSON file ({error.msg}); is it cut off?") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _load_natural_instructions(path: Path) -> Task:
    """A task of Super-NaturalInstructions (Wang et al., 2022): its definitions are the templates."""
    data = _read_json(path)
    for key in ("Definition", "Instances"):
        if not isinstance(data, dict) or not data.get(key):
            raise InputError(f"{path}: field '{key}' is missing or empty; a Natural Instructions file has "
                             "Definition, Positive Examples and Instances")
    outputs = set()
    definitions, instances = _as_list(data["Definition"]), _as_list(data["Instances"])
    if not all(isinstance(text, str) for text in definitions):
        raise InputError(f"{path}: Definition must be text or a list of texts")
    for i, instance in enumerate(instances):
        texts = [instance.get("input"), *_as_list(instance.get("output"))] if isinstance(instance, dict) else [None]
        if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f"{path}: Instances[{i}] needs 'input' and 'output' that are texts and not empty")
        outputs.update(text.strip() for text in texts[1:])
    choices = tuple(sorted(outputs)) if len(outputs) <= MAX_INFERRED_CHOICES else ()

    def template(index: int, name: str, source: str) -> Template:
        return Template(path.stem, index, name, source, "{{ output[0] }}", choices, "output")

    return Task(
        name=path.stem, description=definitions[0].strip().partition("\n")[0],
        sources=(), splits={split: split for split in SPLITS}, rows={},
        fields=("input",), metrics=("exact_match",) if choices else ("rougeL",),
        # json.dumps makes the definition a Jinja string literal, so that braces in it stay text
        templates=tuple(template(i, f"definition_{i}", "{{ " + json.dumps(text.strip(), ensure_ascii=False)
                                 + " }}\n\n{{ input }}") for i, text in enumerate(definitions)),
        path=path, bare=template(NO_INSTRUCTION, "none", "{{ input }}"),
    )


if __name__ == "__main__":
    from src.catalogue import main

    run_as_script(main)
