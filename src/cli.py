"""What all commands share: bad input and how a command ends, flags that name results, tables.

Lies below every other module, so that each of them may raise InputError and the scripts catch one type: message to
standard error, exit code 2, no traceback. Imports nothing heavy.
"""

import argparse
import contextlib
import copy
import difflib
import errno
import os
import re
import shlex
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from src import DEFAULT_TASK_DIR

PARENT = "SWEEP_PARENT_PID"  # set by whoever starts a process that must not outlive it
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
_PR_SET_PDEATHSIG = 1


class InputError(ValueError):
    """Bad input from the user. The message names the flag or file, the value and what is allowed."""


class Help(argparse.RawDescriptionHelpFormatter):
    """Shows each flag once, what kind of value it takes, and its default; what must be given is first, and is usage."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=36)

    def add_arguments(self, actions):
        super().add_arguments(sorted(actions, key=lambda action: not action.required))

    def add_usage(self, usage, actions, groups, prefix=None):
        super().add_usage(usage, [action for action in actions if action.required], [], prefix)

    def _format_action_invocation(self, action):
        shown = copy.copy(action)  # without the spelling with dashes for underscores
        shown.option_strings = [text for text in action.option_strings if "-" not in text.lstrip("-")]
        return super()._format_action_invocation(shown)

    def _get_default_metavar_for_optional(self, action):
        kind = getattr(action.type, "__name__", "")
        return {"int": "N", "float": "X"}.get(kind) or (
            "True|False" if "bool" in kind else action.dest.rpartition("_")[2].upper())

    def _get_help_string(self, action):
        text, default = action.help or "", action.default
        if default in (None, [], argparse.SUPPRESS) or action.nargs == 0 or "default:" in text:
            return text
        default = " ".join(default) if isinstance(default, list) else str(default) or "none"
        return f"{text if text.endswith('..') else text.removesuffix('.')} (default: {default.replace('%', '%%')})"


class OneLineErrors(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without the page of usage that so many flags make."""

    def __init__(self, *args, **kwargs):
        spec = sys.modules["__main__"].__spec__  # of `python -m src.x`, whose file is called __main__.py
        name = {"prog": f"python -m {spec.parent}"} if spec else {}
        super().__init__(*args, **{"formatter_class": Help, "allow_abbrev": False} | name | kwargs)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # without the spelling with dashes for underscores
        print(f"error: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def did_you_mean(name: str, allowed: Iterable[str], shown: int = 12) -> str:
    """Return a hint such as `did you mean 'rte'? (allowed: cb, mnli, rte)` for an unknown `name`.

    With `shown` 0 it is the nearest name alone, and empty where none is near.
    """
    allowed = {each.lstrip("-"): each for each in sorted(map(str, allowed))}  # the dashes of flags bring none near
    name = name.lstrip("-")
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.7)
    part_of = [each for each in allowed if name and (each.startswith(name) or each.endswith(name))]
    near = near or (part_of if len(part_of) == 1 else [])
    hint = f"did you mean '{allowed[near[0]]}'?" if near else ""
    if not shown:
        return hint
    listed = ", ".join([*allowed.values()][:shown]) + (f", ... {len(allowed)} in all" if len(allowed) > shown else "")
    return f"{hint} (allowed: {listed or 'none'})".lstrip()


def check_effects(way: str, flags: Iterable[str], words: Iterable[str]) -> None:
    """Raise InputError for one of the `flags` among the `words` of a command line, where `way` leaves it no effect."""
    given = {word.partition("=")[0] for word in words}
    for flag in flags:
        if flag in given:
            raise InputError(f"{way} and {flag} exclude each other: {flag} would have no effect")


def check_seed(seed: int) -> None:
    if seed < 0:
        raise InputError(f"--seed {seed}: must be at least 0")


def warn(message: str) -> None:
    """Print one warning line to standard error (under torchrun: of the first process only)."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr)


def run_as_script(main: Callable[[], int]) -> NoReturn:
    """Run `main` and exit with its code: bad input gives one line on standard error and 2, Ctrl-C gives 130.

    A place that cannot be written or read is bad input, too; a full disk gives 1, as it may have room again.
    A reader that has gone gives 141, without a word.
    """
    die_with_parent()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names and `±` where the terminal knows ASCII alone
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except OSError as error:
        if error.errno not in (*FULL, *CLOSED):
            raise
        print(f"error: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
        code = 1 if error.errno in FULL else 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        code = 130
    raise SystemExit(code)


# ---- flags and tables -----------------------------------------------------------------------------------------------

def folder(text: str) -> str:
    """The type of a flag: '' would be the current folder without saying so."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} must be the name of a folder (. is this one)")
    return text


RESULTS_FLAGS = {
    "save_name": {"required": True, "help": "name of the sweep: the folder below --results_dir"},
    "results_dir": {"type": folder, "default": "results", "help": "folder of all results"},
    "task_dir": {"type": folder, "default": DEFAULT_TASK_DIR,
                 "help": "folder of task files, for each task's main metric"},
    "split": {"default": "valid", "choices": ("valid", "test"), "help": "scores of which split to read"},
    "metric": {"nargs": "+", "action": "extend", "metavar": "METRIC", "help": "metric of all items, e.g. loss or "
               "exact_match, or ITEM=METRIC for some (default: each task's own main metric)"},
    "config_hash": {"help": "read only the runs of this config_hash (default: all; an error if they differ)"},
    "content_hash": {"nargs": "+", "default": [], "metavar": "HASH", "help": "where an item's templates or rows were "
                     "changed between trainings: read only subsets of this content (default: all; an error if they "
                     "differ)"},
    "unit": {"choices": ("relative", "points", "gain"), "help": "of gains: relative to the score alone, points, or "
             "gain: as it is (default: relative where all have losses, points where all have scores)"},
    **{f"{way}_is_better": {"nargs": "+", "default": [], "metavar": "METRIC", "help": "metrics of your own that are "
                            + kind} for way, kind in (("lower", "losses"), ("higher", "scores"))},
}


def add_results_flags(parser: argparse._ActionsContainer, *names: str, **changes: dict) -> None:
    """Add the flags that name results and what to read of them, by `names` (default: all); `changes` of one's options.

    parser: or one of its groups.

    Each means the same in every command.
    """
    for name in names or RESULTS_FLAGS:
        parser.add_argument(f"--{name}", **RESULTS_FLAGS[name] | changes.get(name, {}))


def results_flags(save_name: str, results_dir: str) -> str:
    """The flags by which another command finds the same results."""
    places = [] if results_dir == "results" else ["--results_dir", results_dir]
    return shlex.join(["--save_name", save_name, *places])


def say_page(args: argparse.Namespace) -> None:
    """Name the command that shows the results of `args` as a page, at the end of one that has found something."""
    print(f"all of it on a page: python -m src.report {results_flags(args.save_name, args.results_dir)}")


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str] | None], **options) -> None:
    """Print text in columns, with rich.table's `options`; a row None is a line across.

    Lines are broken between words alone, so that no name is cut or broken; where not even the longest words fit beside
    each other, each row is a list of its cells. A pipe gets lines of 200 columns, or of $COLUMNS.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Column, Table

    columns, rows, console = list(columns), [row and list(row) for row in rows], Console(markup=False)
    if not (console.is_terminal or "COLUMNS" in os.environ):
        console = Console(width=200, markup=False)
    bare = Table(*(Column(width=1) for _ in columns), **options | {"title": None, "caption": None})
    room = console.width - Measurement.get(console, console.options, bare).maximum + len(columns)
    widths = _widths([[head, *(row[c] for row in rows if row)] for c, head in enumerate(columns)], room)
    if widths is None:
        _print_lists(columns, rows, console.width, options)
        return
    table = Table(*(Column(name, width=width) for name, width in zip(columns, widths, strict=True)), **options)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    console.print(table)


def _widths(cells: list[list[str]], room: int) -> list[int] | None:
    """Widths of columns that need so much `room` at most, none narrower than its longest word; None where none fit."""
    from rich.cells import cell_len

    least = [max((cell_len(word) for text in column for word in text.split()), default=0) for column in cells]
    more = [max(map(cell_len, column)) - width for column, width in zip(cells, least, strict=True)]
    widths, spare = list(least), room - sum(least)
    if spare < 0:
        return None
    for rank, c in enumerate(sorted(range(len(cells)), key=more.__getitem__)):  # numbers stay on a line, lists do not
        share = min(more[c], spare // (len(cells) - rank))
        widths[c], spare = widths[c] + share, spare - share
    return widths


def _print_lists(columns: list[str], rows: list[list[str] | None], width: int, options: dict) -> None:
    """The rows of a table one after another, each cell that is not empty on lines of its own."""
    lines = [options.get("title") or ""]
    for row in filter(None, rows):
        lines += [row[0], *(f"  {name}: {cell}" for name, cell in zip(columns[1:], row[1:], strict=True) if cell)]
    for line in filter(None, [*lines, options.get("caption") or ""]):
        print(textwrap.fill(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))


# ---- processes ------------------------------------------------------------------------------------------------------


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, if the parent asked for that by `SWEEP_PARENT_PID`.

    `run_as_script` calls it, before slow imports. Children started by this process do not inherit the request.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return
    import ctypes

    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):  # not Linux: an orphan keeps its claim and finishes
        return
    if os.getppid() != int(parent):  # it died before the request
        os._exit(1)


def tied_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a process that this one starts, and that must not outlive it."""
    return {**environment, PARENT: str(os.getpid())}


def signal_group(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to the process group of a child, if there still is one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def describe_exit(code: int) -> str:
    """`exit code 1`, or the signal in words for the negative code of a killed process."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    return f"killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
