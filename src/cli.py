"""What all commands share: bad input and how a command ends, flags that name results, tables.

Lies below every other module, so that each of them may raise InputError and the scripts catch one type: message to
standard error, exit code 2, no traceback. Imports nothing heavy.
"""

import argparse
import contextlib
import difflib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from src import DEFAULT_TASK_DIR

PARENT = "SWEEP_PARENT_PID"  # set by whoever starts a process that must not outlive it
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
_PR_SET_PDEATHSIG = 1


class InputError(ValueError):
    """Bad input from the user. The message names the flag or file, the value and what is allowed."""


class OneLineErrors(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without the page of usage that so many flags make."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def did_you_mean(name: str, allowed: Iterable[str], shown: int = 12) -> str:
    """Return a hint such as `did you mean 'rte'? (allowed: cb, mnli, rte)` for an unknown `name`."""
    allowed = sorted(map(str, allowed))
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    listed = ", ".join(allowed[:shown]) + (f", ... {len(allowed)} in all" if len(allowed) > shown else "")
    return (f"did you mean '{near[0]}'? " if near else "") + f"(allowed: {listed or 'none'})"


def warn(message: str) -> None:
    """Print one warning line to standard error (under torchrun: of the first process only)."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr)


def run_as_script(main: Callable[[], int]) -> NoReturn:
    """Run `main` and exit with its code: bad input gives one line on standard error and 2, Ctrl-C gives 130.

    A place that cannot be written or read is bad input, too; a full disk gives 1, as it may have room again.
    """
    die_with_parent()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names and `±` where the terminal knows ASCII alone
    try:
        code = main()
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

RESULTS_FLAGS = {
    "save_name": {"required": True, "help": "name of the sweep: the folder below --results_dir"},
    "results_dir": {"default": "results", "help": "folder of all results (default: results)"},
    "task_dir": {"default": DEFAULT_TASK_DIR, "help": "folder of task files, for each task's main metric (default: "
                 "%(default)s)"},
    "split": {"default": "valid", "choices": ("valid", "test"), "help": "scores of which split to read (default: "
              "valid)"},
    "metric": {"help": "metric of all items, e.g. loss or exact_match (default: each task's own main metric)"},
    "config_hash": {"help": "read only the runs of this config_hash (default: all; an error if they differ)"},
    "content_hash": {"nargs": "+", "default": [], "metavar": "HASH", "help": "where an item's templates or rows were "
                     "changed between trainings: read only subsets of this content (default: all; an error if they "
                     "differ)"},
}


def add_results_flags(parser: argparse.ArgumentParser, *names: str, **changes: dict) -> None:
    """Add the flags that name results and what to read of them, by `names` (default: all); `changes` of one's options.

    Each means the same in every command.
    """
    for name in names or RESULTS_FLAGS:
        parser.add_argument(f"--{name}", **RESULTS_FLAGS[name] | changes.get(name, {}))


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str] | None], fold: str | None = None,
                **options) -> None:
    """Print text in columns, with rich.table's `options`; a row None is a line across.

    The column `fold` is broken over lines where it is too long, never cut. A pipe gets lines of 200 columns, or of
    $COLUMNS.
    """
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(*(Column(name, overflow="fold") if name == fold else name for name in columns), **options)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    console = Console()
    Console(width=None if console.is_terminal or "COLUMNS" in os.environ else 200).print(table)


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
