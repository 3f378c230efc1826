"""Templates: one row of a data set in, the texts that a model reads and should write out."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jinja2 import nodes

from src.cli import InputError
from src.identity import short_hash
from src.metrics import colliding
from src.tasks.sandbox import NullPrinted, compile_expression, compile_template, in_time, is_null, parse, variables

NO_INSTRUCTION = -1  # template index of the bare input


class LeftOut(InputError):
    """A row that cannot serve: it is left out, and counted under `counter`."""

    counter = ""


class EmptyRow(LeftOut):
    """A row without text: the hub's data sets hold a few."""

    counter = "empty_rows"


class Unlabelled(LeftOut):
    """A row without a gold answer."""

    counter = "unlabelled_rows"


class AlikeChoices(LeftOut):
    """A row with two answer choices of its own that the metrics cannot tell apart."""

    counter = "alike_choices_rows"


LEFT_OUT = {kind.counter: words for kind, words in (
    (EmptyRow, "without text"), (Unlabelled, "without a gold label"),
    (AlikeChoices, "with two answer choices that are alike"))}


class AnswerChoices(tuple):
    """The answer choices as templates see them: a whole float is an index, too; a negative one is none."""

    def __getitem__(self, index):
        if isinstance(index, float) and index.is_integer():
            index = int(index)
        if isinstance(index, int) and index < 0:
            raise IndexError
        return super().__getitem__(index)


AnswerChoices.__module__ = "builtins"  # Jinja's message then says: AnswerChoices object has no element 2


def _blank(value: Any) -> bool:
    """Whether there is no text in a value: null, '', or lists and mappings of nothing else."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return is_null(value)
    return all(map(_blank, value))


def _names(node: nodes.Node) -> set[str]:
    return {name.name for name in (node, *node.find_all(nodes.Name)) if isinstance(name, nodes.Name)}


@functools.cache
def _index_names(source: str, expression: bool = False) -> tuple[frozenset[str], bool]:
    """Names that are an index into the answer choices, or into a list written out; whether one counts from the end."""
    names, from_end = set(), False
    for found in parse(source, expression).find_all(nodes.Getitem):
        if isinstance(found.node, (nodes.List, nodes.Tuple)) or "answer_choices" in _names(found.node):
            names |= _names(found.arg)
            from_end |= isinstance(found.arg, nodes.Neg)
    return frozenset(names), from_end


@functools.cache
def _optional_names(source: str, expression: bool = False) -> frozenset[str]:
    """Names that are asked whether they are there, as in `a or [b]`: they may be null or empty."""
    asked = []
    for found in parse(source, expression).find_all((nodes.If, nodes.CondExpr, nodes.Or, nodes.Not, nodes.Filter)):
        if isinstance(found, (nodes.If, nodes.CondExpr)):
            asked.append(found.test)
        elif isinstance(found, nodes.Or):
            asked += [found.left, found.right, *(found.right.items if isinstance(found.right, nodes.List) else ())]
        elif isinstance(found, nodes.Not) or found.name in ("default", "d"):
            asked.append(found.node)
    return frozenset(node.name for node in asked if isinstance(node, nodes.Name))


@dataclass(frozen=True)
class Rendered:
    """One row under one template: what the model reads, what it should write, accepted answers, answer choices."""

    input: str
    target: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)  # what it was made of


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
        """Columns that the target is made of."""
        return variables(self.target)

    @functools.cached_property
    def answer_variables(self) -> frozenset[str]:
        """Columns that target, accepted answers and answer choices are made of."""
        names = self.target_variables
        if self.references:
            names |= variables(self.references, expression=True)
        if isinstance(self.answer_choices, str):
            names |= variables(self.answer_choices, expression="|||" not in self.answer_choices)
        return names

    @functools.cached_property
    def variables(self) -> frozenset[str]:
        """Columns that the template reads."""
        return self.answer_variables | variables(self.input)

    @functools.cached_property
    def _optional(self) -> frozenset[str]:
        sources = [(self.input, False), (self.target, False)] + ([(self.references, True)] if self.references else [])
        return frozenset().union(*(_optional_names(*source) for source in sources))

    @functools.cached_property
    def _indices(self) -> tuple[frozenset[str], bool]:
        sources = [(self.target, False)] + ([(self.references, True)] if self.references else [])
        names, from_end = zip(*(_index_names(*source) for source in sources), strict=True)
        return frozenset().union(*names), any(from_end) or _index_names(self.input)[1]

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
        """Whether the row has a gold label."""
        row = {**dict.fromkeys(self.target_variables), **row}
        try:
            self._check_label(row, "")
            self.render(row)
        except Unlabelled:
            return False
        except InputError:  # of another kind: said where the row is used
            pass
        return True

    def _check_label(self, row: Mapping[str, Any], where: str) -> None:
        """Raise Unlabelled where a column of the target is null, NaN or empty, or an index into the choices below 0."""
        for name in self.target_variables:
            value = row[name]
            missing = _blank(value) and name not in self._optional
            if not missing and name in self._indices[0]:
                missing = value < 0 if isinstance(value, (int, float)) else value in ("-1", "-1.0")
            if missing:
                labels = ", ".join(f"{name} = {row[name]!r:.60}" for name in sorted(self.target_variables))
                raise Unlabelled(f"{where}: the row has no gold label ({labels})")

    def render(self, row: Mapping[str, Any]) -> Rendered:
        """Render one row.

        Raises:
            InputError: a column is missing, or the template cannot be applied to the row, or not within the limits.
            LeftOut: the row has no gold label, a column is null, what is rendered is empty, or two answer choices that
                are made of the row are alike.
        """
        where = f"task '{self.task}', template {self.index} ({self.name})"
        if not self.variables <= row.keys():
            missing = min(self.variables - row.keys())
            raise InputError(f"{where}: field '{missing}' is missing (fields found: {', '.join(sorted(row))})")
        self._check_label(row, where)
        for name in self.variables:
            if is_null(row[name]) and name not in self._optional:
                raise EmptyRow(f"{where}: field '{name}' is null")
        try:
            choices, source, target, references = in_time(self._texts, row)
        except LeftOut as error:
            raise type(error)(f"{where}: {error}") from error
        except Exception as error:  # whatever the expressions of a task file raise
            raise InputError(f"{where}: {' '.join(str(error).split()) or type(error).__name__}") from error
        if isinstance(self.answer_choices, str) and (alike := colliding(choices)):
            raise AlikeChoices(f"{where}: the answer choices '{alike[0]}' and '{alike[1]}' are alike")
        if not source:
            raise EmptyRow(f"{where}: input is empty")
        if not target or not references:
            raise Unlabelled(f"{where}: {'an accepted answer' if target else 'target'} is empty")
        return Rendered(source, target, references, choices, row)

    def _texts(self, row: Mapping[str, Any]) -> tuple[tuple[str, ...], str, str, tuple[str, ...]]:
        """Answer choices, input, target and accepted answers of a row."""
        choices = self.answer_choices
        if isinstance(choices, str) and "|||" in choices:
            choices = tuple(choice.strip() for choice in compile_template(choices).render(row).split("|||"))
        elif isinstance(choices, str):
            choices = tuple(map(str, compile_expression(choices)(row)))
        values = {**row, "answer_choices": choices if self._indices[1] else AnswerChoices(choices)}
        try:
            source = compile_template(self.input).render(values).strip()
        except NullPrinted as error:
            raise EmptyRow("a text of the input is null") from error
        try:
            target = compile_template(self.target).render(values).strip()
        except NullPrinted as error:
            raise Unlabelled("the target is null") from error
        references = compile_expression(self.references)(values) if self.references else [target]
        # dict.fromkeys: data sets repeat an answer once for each annotator
        references = dict.fromkeys(str(text).strip() for text in references if not _blank(text))
        return choices, source, target, tuple(references)
