"""Devices, and child processes on them: one for each subset, afresh or forked from a warm process.

A child is a process group of its own that holds its subset's claim. It never outlives its scheduler where the script
is run by `src.cli.run_as_script`.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from src.cli import InputError, signal_group, tied_environment, warn
from src.sweep.forkserver import NUMBER, READY

ROOT = Path(__file__).resolve().parent.parent.parent
PRELOAD = "src.sweep.preload"  # what the forkserver imports


# ---- devices --------------------------------------------------------------------------------------------------------


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as values for CUDA_VISIBLE_DEVICES. Asks no driver, imports nothing."""
    nodes = sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    if not nodes:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in range(len(nodes))]
    return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]


def resolve_devices(wanted: Sequence[str]) -> list[str]:
    """Turn --device into CUDA_VISIBLE_DEVICES values, or ["cpu"]. Raises InputError for a GPU that does not exist."""
    gpus = visible_gpus()
    if list(wanted) == ["cpu"]:
        return ["cpu"]
    if list(wanted) == ["all"]:
        return gpus or ["cpu"]
    for name in wanted:
        if not name.isdigit():
            raise InputError(f"--device {name}: must be indices of GPUs, 'all' or 'cpu'")
        if list(wanted).count(name) > 1:
            raise InputError(f"--device {name} is given twice; --jobs_per_device trains several subsets on one device")
        if gpus and int(name) >= len(gpus):
            raise InputError(f"--device {name}: there {'is' if len(gpus) == 1 else 'are'} {len(gpus)} GPU(s) here, "
                             f"indices 0 to {len(gpus) - 1}; or --device cpu")
    if not gpus:
        warn(f"--device {' '.join(wanted)}: there is no GPU here, running on the CPU")
        return ["cpu"]
    return [gpus[int(name)] for name in wanted]


def device_environment(device: str, slots: int) -> dict[str, str]:
    """Environment that pins a child to its device; on the CPU, to its share of the cores."""
    if device != "cpu":
        return {"CUDA_VISIBLE_DEVICES": device}
    threads = max(1, len(os.sched_getaffinity(0)) // slots)
    return {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
            # threads that spin while they wait make a tiny training 8 times slower where others use the cores, too
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}


# ---- children -------------------------------------------------------------------------------------------------------


class Child:
    """A running child. `fileno()` becomes readable when it has ended, then `finish()` gives its exit code."""

    def __init__(self, pid: int, fd: int):
        self.pid, self.fd = pid, fd

    def fileno(self) -> int:
        return self.fd

    def finish(self) -> int:
        raise NotImplementedError


class _ShellChild(Child):
    def __init__(self, process: subprocess.Popen):
        super().__init__(process.pid, os.pidfd_open(process.pid))
        self.process = process

    def finish(self) -> int:
        signal_group(self.pid)  # strays of the group, while its number cannot be anybody else's
        os.close(self.fd)
        return self.process.wait()


class ShellStarter:
    """Starts each child as a fresh Python."""

    def close(self) -> None:
        pass

    def start(self, command: list[str], environment: dict[str, str], log: Path, claim: int | None) -> Child:
        with log.open("ab") as file:
            return _ShellChild(subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, process_group=0,
                env=tied_environment(environment), pass_fds=() if claim is None else (claim,)))


class _WarmChild(Child):
    def finish(self) -> int:
        answer = os.read(self.fd, NUMBER.size)
        os.close(self.fd)
        if len(answer) < NUMBER.size:  # the forkserver died, and its children with it
            signal_group(self.pid)
            return -signal.SIGKILL
        return NUMBER.unpack(answer)[0]


class WarmStarter:
    """Starts each child by a fork of src/sweep/forkserver.py. Raises RuntimeError where that cannot be done."""

    def __init__(self, log: Path, environment: dict[str, str], preload: str):
        self.log, self.preload = log, preload
        # numpy's threads would be started by its import, and a process with threads should not be forked
        self.environment = environment | {"OPENBLAS_NUM_THREADS": "1"}
        self.connection, self.server = self._launch()

    def close(self) -> None:
        _hang_up(self.connection, self.server)

    def _launch(self) -> tuple[socket.socket, subprocess.Popen]:
        # the kernel keeps messages of this kind apart
        connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = (f"import socket, sys; sys.path[0] = {str(ROOT)!r}; from src.sweep.forkserver import main; "
                f"main(socket.socket(fileno={theirs.fileno()}), {self.preload!r})")
        with theirs, self.log.open("ab") as file:
            start = file.tell()
            server = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                process_group=0, env=tied_environment(self.environment), pass_fds=(theirs.fileno(),))
        with contextlib.ExitStack() as failed:
            failed.callback(_hang_up, connection, server)
            if connection.recv(len(READY)) == READY:
                failed.pop_all()
                return connection, server
        message = self.log.read_bytes()[start:].decode(errors="replace").strip()
        raise RuntimeError(message.splitlines()[-1] if message else "the forkserver ended without a message")

    def start(self, command: list[str], environment: dict[str, str], log: Path, claim: int | None) -> Child:
        request = json.dumps({"command": command, "env": environment}).encode()
        for attempt in range(2):
            reading, writing = os.pipe()
            with contextlib.suppress(OSError), log.open("ab") as file:
                socket.send_fds(self.connection, [request],
                                [file.fileno(), writing, *([] if claim is None else [claim])])
            os.close(writing)
            pid = os.read(reading, NUMBER.size)
            if pid:
                return _WarmChild(NUMBER.unpack(pid)[0], reading)
            os.close(reading)
            if attempt == 0:  # the server was killed
                self.close()
                self.connection, self.server = self._launch()
        raise RuntimeError(f"the forkserver dies at once; see {self.log}")


def _hang_up(connection: socket.socket, server: subprocess.Popen) -> None:
    """End the forkserver, and with it what it has forked."""
    connection.close()
    try:
        server.wait(timeout=1)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def make_starter(warm: bool, log: Path, environment: dict[str, str], preload: str) -> ShellStarter | WarmStarter:
    """The starter that is wanted; a plain one, with a warning, where nothing can be forked."""
    if warm:
        try:
            return WarmStarter(log, environment, preload)
        except RuntimeError as error:
            warn(f"no warm start, each child starts afresh: {error}")
    return ShellStarter()
