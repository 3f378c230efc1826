"""Rows and documents out of files, with errors of one line: text stays text, and every error has file and line."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from src.cli import InputError
from src.files import decode, read_bytes, read_text

MAX_YAML_BYTES = 2_000_000
MAX_YAML_NODES = 200_000  # with what aliases and merges (`*a`, `<<: *a`) repeat
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str, path: Path, line: int = 1, broken: str = "not valid JSON: {}") -> Any:
    """Parse a JSON text that begins in `line` of `path`; `broken` words the error where it is none."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {line + error.lineno - 1}: {broken.format(error.msg)}") from error
    except RecursionError as error:
        raise InputError(f"{path}, line {line}: lists or mappings nested too deeply") from error
    except ValueError as error:  # Python reads no whole number of more than 4300 digits
        raise InputError(f"{path}, line {line}: a number too long to be read") from error
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{path}, line {line}: half of a character (a lone surrogate, "
                             f"\\u{ord(error.object[error.start]):04x})") from error
    return value


def read_rows(path: Path) -> Sequence[dict]:
    """The rows of a jsonl, csv or parquet file as mappings by column.

    A jsonl or parquet value has the type it has in the file. A csv has none: every value is text and an empty one is
    null; only a column whose values all are whole numbers in their usual spelling (`0`, `-1`, `42`) becomes numbers,
    since a label may be an index of the answer choices. `007`, `+1`, `1.50`, `1e5` and `TRUE` stay the text they are.

    Raises:
        InputError: the file cannot be read; names the line where there are lines.
    """
    return {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[path.suffix](path)


def _read_jsonl(path: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        if not line.strip():  # mostly the last line
            continue
        row = parse_json(decode(line, str(path), number), path, number)
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: a row must be a JSON object")
        rows.append(row)
    return rows


def _read_csv(path: Path) -> list[dict]:
    text = read_text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # by default 131,072 signs, less than some articles
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns, records, line = [], [], 1
    try:
        for record in reader:
            if record and not columns:
                columns = record
                twice = next((name for name, count in Counter(columns).items() if count > 1), None)
                if twice is not None or not all(name.strip() for name in columns):
                    wrong = f"two columns are named '{twice}'" if twice else "a column has no name"
                    raise InputError(f"{path}, line {line}: {wrong}; found: {', '.join(columns)}")
            elif record and len(record) != len(columns):
                raise InputError(f"{path}, line {line}: {len(record)} fields, but the header has {len(columns)}; a "
                                 "field with a comma or a line break in it must stand in quotes")
            elif record:
                records.append(record)
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: not valid CSV: {error}") from error
    if not columns:
        raise InputError(f"{path}, line 1: no names of columns; a CSV file begins with them")
    values = [_convert(column) for column in zip(*records, strict=True)]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _convert(column: Sequence[str]) -> list:
    """One column of a csv by the rule of `read_rows`."""
    kind = int if all(map(_WHOLE_NUMBER.fullmatch, filter(None, column))) else str
    return [kind(value) if value else None for value in column]


def _read_parquet(path: Path) -> list[dict]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        if len(set(table.column_names)) < len(table.column_names):
            raise InputError(f"{path}: two columns have the same name; found: {', '.join(table.column_names)}")
        return table.to_pylist()
    except InputError:
        raise
    except Exception as error:  # pyarrow's own, and what decoding damaged data raises
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def compose_yaml(path: Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> tuple[yaml.Node | None, Any]:
    """The tree of nodes (they know their lines) and the content of a YAML file.

    Raises:
        InputError: the file cannot be read, is no YAML, or is too large, with what its aliases repeat.
    """
    text = read_text(path)
    if len(text) > MAX_YAML_BYTES:
        raise InputError(f"{path}: {len(text):,} characters; a YAML file may have {MAX_YAML_BYTES:,}")
    try:
        reader = loader(text)
        root = reader.get_single_node()
        if root is not None and _count_nodes(root, path) > MAX_YAML_NODES:
            raise InputError(f"{path}: more than {MAX_YAML_NODES:,} values with what aliases (*name) and merges (<<) "
                             "repeat; a YAML file may not have more")
        return root, reader.construct_document(root) if root is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InputError(f"{path}, line {mark.line + 1 if mark else '?'}: {error.problem}") from error
    except RecursionError as error:
        raise InputError(f"{path}: lists or mappings nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error


def _count_nodes(root: yaml.Node, path: Path) -> int:
    """Nodes of the tree when every alias is written out; each node is visited once."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node))
        if known == 0:
            raise InputError(f"{path}, line {node.start_mark.line + 1}: an alias (*name) within what it stands for")
        if known is None:
            sizes[id(node)] = 0  # being counted
            parts = (part for pair in node.value for part in pair) if isinstance(node, yaml.MappingNode) else (
                node.value if isinstance(node, yaml.SequenceNode) else ())
            known = sizes[id(node)] = 1 + sum(map(size, parts))
        return known

    return size(root)
