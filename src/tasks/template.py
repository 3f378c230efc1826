"""Templates: one row of a data set in, the texts that a model reads and should write out."""

import functools
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from src.cli import InputError
from src.identity import short_hash

NO_INSTRUCTION = -1  # template index of the bare input


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
compile_template = functools.cache(_JINJA.from_string)
compile_expression = functools.cache(functools.partial(_JINJA.compile_expression, undefined_to_none=False))


@functools.cache
def variables(source: str, expression: bool = False) -> frozenset[str]:
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
        return short_hash([self.input, self.target, self.answer_choices, self.references])

    @functools.cached_property
    def target_variables(self) -> frozenset[str]:
        """Columns that the target is made of: a row is unlabelled where one of them is null or negative."""
        return variables(self.target)

    @functools.cached_property
    def variables(self) -> frozenset[str]:
        """Columns that the template reads."""
        names = self.target_variables | variables(self.input)
        if self.references:
            names |= variables(self.references, expression=True)
        if isinstance(self.answer_choices, str):
            names |= variables(self.answer_choices, expression="|||" not in self.answer_choices)
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
                choices = tuple(choice.strip() for choice in compile_template(choices).render(row).split("|||"))
            elif isinstance(choices, str):
                choices = tuple(map(str, compile_expression(choices)(row)))
            values = {**row, "answer_choices": choices}
            source = compile_template(self.input).render(values).strip()
            target = compile_template(self.target).render(values).strip()
            references = compile_expression(self.references)(values) if self.references else [target]
            # dict.fromkeys: data sets repeat an answer once for each annotator
            references = tuple(dict.fromkeys(str(text).strip() for text in references))
        except Exception as error:  # whatever the expressions of a task file raise
            raise InputError(f"{where}: {error}") from error
        if not source or not target or not all(references) or not references:
            empty = "input" if not source else "target" if not target else "an accepted answer"
            raise EmptyRow(f"{where}: {empty} is empty")
        return Rendered(source, target, references)
