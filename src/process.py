"""Processes that end together, and what an exit code says. Imports nothing heavy."""

import os
import signal

PARENT = "SWEEP_PARENT_PID"  # set by whoever starts a process that must not outlive it
_PR_SET_PDEATHSIG = 1


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


def describe_exit(code: int) -> str:
    """`exit code 1`, or the signal in words for the negative code of a killed process."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    return f"killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
