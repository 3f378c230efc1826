"""Inputs that are too long: texts of the row are shortened, so that the words of the template stay."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import nodes

from src.cli import InputError
from src.tasks.sandbox import parse, variables
from src.tasks.template import Rendered, Template

CLOSE = 8  # tokens below the limit with which a shortened input is good enough
TRIES = 8
SIGNS_PER_TOKEN = 4  # the first guess


def shorten(template: Template, row: Mapping[str, Any], too_many: Callable[[str], int]) -> Rendered:
    """Render `row` so that its input fits, or as it is where that cannot be reached.

    Shortened, at their ends, are columns that nothing but the input reads, the longest first: down to the length of the
    next, then both, and so on. A column that is a list counts as one text and loses its last elements; the values of a
    mapping count each.

    Args:
        too_many: how many tokens of an input are too many; 0 or less where it fits. Called about three times.
    """
    whole = template.render(row)
    excess = too_many(whole.input)
    texts = {place: size for place, value in _texts(template, row) if (size := _size(value))}
    total = sum(texts.values())
    if excess <= 0 or not total:
        return whole
    best, cut = None, excess * SIGNS_PER_TOKEN
    bracket = [(0, excess), None]  # signs cut and tokens too many: of the most that is not enough, the least that is
    for number in range(TRIES):
        cut = min(max(cut, 1), total)
        try:
            rendered = template.render(_shortened(row, texts, _cap(list(texts.values()), cut)))
        except InputError:  # the template cannot do without the text
            left = None
        else:
            left = too_many(rendered.input)
        if left is not None and left <= 0:
            best = Rendered(rendered.input, whole.target, whole.references, whole.choices, row)
            bracket[1] = (cut, left)
            if left >= -CLOSE:
                break
        elif left is None:
            bracket[1] = (cut, None)
        elif cut == total:
            break
        else:
            bracket[0] = (cut, left)
        cut = _next(*bracket, excess) if number < 3 or bracket[1] is None else (bracket[0][0] + bracket[1][0]) // 2
        if bracket[1] is not None and bracket[1][0] - bracket[0][0] <= CLOSE * SIGNS_PER_TOKEN // 2:
            break
    return best or whole


def _next(below: tuple[int, int], above: tuple[int, int | None] | None, excess: int) -> int:
    """How many signs to cut next, on the line through what was tried, aiming between fitting just and fitting well."""
    if above is not None and above[1] is None:
        return (below[0] + above[0]) // 2
    if above is None:
        gone = excess - below[1]
        each = below[0] / gone if gone > 0 else 2 * below[0] / excess + SIGNS_PER_TOKEN
        return max(int((excess + CLOSE / 2) * each), below[0] + 1)
    each = (above[0] - below[0]) / max(below[1] - above[1], 1)
    return int(below[0] + each * (below[1] + CLOSE / 2))


@functools.cache
def _asked(source: str) -> frozenset[str]:
    """Names in the conditions and indices of a template: shortened, they would mean something else."""
    found: set[str] = set()
    for node in parse(source).find_all((nodes.If, nodes.CondExpr, nodes.Compare, nodes.Getitem)):
        part = node.arg if isinstance(node, nodes.Getitem) else node if isinstance(node, nodes.Compare) else node.test
        found |= {name.name for name in (part, *part.find_all(nodes.Name)) if isinstance(name, nodes.Name)}
    return frozenset(found)


def _texts(template: Template, row: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(place, value) of each text that may be shortened: a column, or what is read of one that is a mapping."""
    for name in sorted(variables(template.input) - template.answer_variables - _asked(template.input)):
        if isinstance(row[name], Mapping):
            keys = _keys(template.input, name) or row[name].keys()
            yield from (((name, key), value) for key, value in row[name].items() if key in keys)
        else:
            yield (name,), row[name]


@functools.cache
def _keys(source: str, name: str) -> frozenset[str]:
    """The keys of the column `name` that a template reads, as in `context["title"]` or `context.title`."""
    found = parse(source).find_all((nodes.Getitem, nodes.Getattr))
    return frozenset(node.attr if isinstance(node, nodes.Getattr) else node.arg.value for node in found
                     if isinstance(node.node, nodes.Name) and node.node.name == name
                     and isinstance(getattr(node, "arg", node), (nodes.Const, nodes.Getattr)))


def _size(value: Any) -> int:
    """Signs of a text or of all texts in a list; 0 for what is neither."""
    return len(value) if isinstance(value, str) else sum(map(_size, value)) if isinstance(value, (list, tuple)) else 0


def _cap(sizes: list[int], cut: int) -> int:
    """The length down to which longer texts are cut so that `cut` signs go."""
    sizes = sorted(sizes, reverse=True)
    for count, (size, shorter) in enumerate(zip(sizes, [*sizes[1:], 0], strict=True), 1):
        if cut <= count * (size - shorter):
            return size - -(-cut // count)
        cut -= count * (size - shorter)
    return 0


def _shortened(row: Mapping[str, Any], texts: Mapping[tuple[str, ...], int], cap: int) -> dict[str, Any]:
    row = dict(row)
    for place, size in texts.items():
        if size > cap and len(place) == 1:
            row[place[0]] = _begin(row[place[0]], cap)
        elif size > cap:
            row[place[0]] = {**row[place[0]], place[1]: _begin(row[place[0]][place[1]], cap)}
    return row


def _begin(value: Any, size: int) -> Any:
    """The beginning of a text, of whole words where there are any, or of a list of texts, one of them at least."""
    if isinstance(value, str):
        begin = value[:size]
        words, space, last = begin.rpartition(" ")
        return words if space and len(last) < 30 and not value[size:size + 1].isspace() and size < len(value) else begin
    if not isinstance(value, (list, tuple)):
        return value
    kept: list = []
    for part in value:
        if kept and size <= 0:
            break
        kept.append(_begin(part, max(size, 0)))
        size -= _size(part)
    return kept
