"""Jinja for the templates of task files, which may come from anybody: no code of theirs, limits of time and size."""

import functools
import re
import signal
import threading
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.meta
import jinja2.sandbox

MAX_SECONDS = 3  # of computing for one row under one template
MAX_TEXT = 5_000_000  # characters or elements of anything that a template makes
_MAX_BITS = 100_000  # of a whole number
_MAX_WIDTH = 10_000  # of a field in a format


class TooMuch(Exception):
    """A template goes beyond a limit."""


class NullPrinted(Exception):
    """A template prints a null or NaN, which would be the text `None` or `nan`."""


def is_null(value: Any) -> bool:
    """Whether a value is none: null, or one of the ways in which tables say so (NaN, pandas.NA, NaT)."""
    if value.__class__ in (str, int, list, dict):
        return False
    return value is None or (isinstance(value, float) and value != value) or (
        type(value).__name__ in ("NAType", "NaTType", "float32", "float16") and str(value) in ("<NA>", "NaT", "nan"))


def _check(size: int) -> None:
    if size > MAX_TEXT:
        raise TooMuch(f"makes more than {MAX_TEXT:,} characters or elements")


def _check_arguments(arguments: Iterable) -> None:
    """Widths, counts and fillings: no filter or method needs a larger number."""
    for value in arguments:
        if isinstance(value, int) and abs(value) > MAX_TEXT:
            raise TooMuch(f"asks for {value:.0e} of something")


def _check_format(text: Any) -> None:
    if isinstance(text, str):
        for width in re.findall(r"\d{5,}|%[-#0 +]*\*", text):
            if "%" in width or int(width[:20]) > _MAX_WIDTH:
                raise TooMuch(f"has a field wider than {_MAX_WIDTH:,} in a format")


def _join(pieces: Iterable[str]) -> str:
    kept, size = [], 0
    for piece in pieces:
        size += len(piece)
        kept.append(piece)
        if size > MAX_TEXT:
            break
    _check(size)
    return "".join(kept)


def _check_method(method: str, own: Any, arguments: tuple) -> tuple:
    """Check a call of a text's method (or of the filter of that name) before it is done; return its arguments."""
    if method in ("format", "format_map"):
        _check_format(own)
    elif method == "replace" and len(arguments) > 1:
        _check(str(own).count(str(arguments[0])) * len(str(arguments[1])))
    elif method == "join" and arguments:
        pieces = [*arguments[0]]
        _check(sum(len(str(piece)) + len(own) for piece in pieces))
        arguments = (pieces, *arguments[1:])
    return arguments


class _Generator(jinja2.compiler.CodeGenerator):
    """Writes `a ~ b` as a call that looks at the size."""

    def visit_Concat(self, node, frame):
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(jinja2.sandbox.SandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%", "+"})
    code_generator_class = _Generator
    concat = staticmethod(_join)

    def joined(self, parts: tuple) -> str:
        return _join(map(str, parts))

    def call_binop(self, context, operator: str, left, right):
        sizes = [len(side) if isinstance(side, (str, list, tuple)) else None for side in (left, right)]
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "*":
            if whole and left.bit_length() + right.bit_length() > _MAX_BITS:
                raise TooMuch("makes a number too large")
            count = right if sizes[1] is None else left
            if sizes != [None, None] and isinstance(count, int):
                _check(count * (sizes[0] or sizes[1] or 0))
        elif operator == "**" and whole and left.bit_length() * right > _MAX_BITS:
            raise TooMuch("makes a number too large")
        elif operator == "%":
            _check_format(left)
        elif operator == "+" and None not in sizes:
            _check(sum(sizes))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context, __obj, *arguments, **named):  # names as in Jinja: a template may use `self`
        own = getattr(__obj, "__self__", None)
        if isinstance(own, str):
            _check_arguments((*arguments, *named.values()))
            arguments = _check_method(__obj.__name__, own, arguments)
        return super().call(__context, __obj, *arguments, **named)


def _limited_filter(name: str, function: Callable) -> Callable:
    @functools.wraps(function)  # with the marks by which Jinja knows that a filter takes the context
    def limited(*arguments, **named):
        _check_arguments((*arguments, *named.values()))
        at = 1 if hasattr(function, "jinja_pass_arg") else 0
        value, rest = arguments[at], arguments[at + 1:]
        if name == "join":
            between = rest[0] if rest else named.get("d", "")
            (value,) = _check_method("join", str(between), (value,))
            arguments = (*arguments[:at], value, *rest)
        else:
            _check_method(name, value, rest or tuple(named.values()))
        return function(*arguments, **named)

    return limited


def _print(value: Any) -> Any:
    if is_null(value):
        raise NullPrinted
    return value


def _choose(values: list) -> Any:
    """promptsource's `choice` filter, made reproducible: the same list always gives the same element."""
    return values[zlib.crc32(repr(values).encode()) % len(values)]


def _most_frequent(values: list) -> list:
    """promptsource's `most_frequent` filter: the most frequent elements, in order of first appearance."""
    top = max(map(values.count, values), default=0)
    return [value for value in dict.fromkeys(values) if values.count(value) == top]


JINJA = _Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False, finalize=_print)
JINJA.globals.update(zip=zip, len=len, enumerate=enumerate)
JINJA.filters.update(choice=_choose, most_frequent=_most_frequent)
JINJA.filters.update({name: _limited_filter(name, JINJA.filters[name]) for name in (
    "batch", "center", "format", "indent", "join", "replace", "slice", "tojson", "truncate", "wordwrap")})
compile_template = functools.cache(JINJA.from_string)
compile_expression = functools.cache(functools.partial(JINJA.compile_expression, undefined_to_none=False))


@functools.cache
def variables(source: str, expression: bool = False) -> frozenset[str]:
    """Names that the Jinja `source` takes from the row."""
    names = jinja2.meta.find_undeclared_variables(parse(source, expression))
    return frozenset(names) - {"answer_choices"} - set(JINJA.globals)


def parse(source: str, expression: bool = False) -> jinja2.nodes.Template:
    return JINJA.parse("{{ " + source + " }}" if expression else source)


# ---- time -----------------------------------------------------------------------------------------------------------


def _expired(signum, frame):
    raise TooMuch(f"takes longer than {MAX_SECONDS} seconds")


def in_time(function: Callable, *arguments) -> Any:
    """Call `function`; raise TooMuch where it computes longer than MAX_SECONDS (in the main thread, which has signals).

    The clock is that of computing: a process that is stopped or waits for the processor is not late. The handler stays
    where it is, since setting it for each row would cost as much as rendering it.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return function(*arguments)
    _handle_alarms()
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS, 1)
    try:
        return function(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@functools.cache
def _handle_alarms() -> None:
    signal.signal(signal.SIGVTALRM, _expired)
