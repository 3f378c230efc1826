"""Warm start: a process that has imported the libraries forks one child per subset.

Starting Python with torch, transformers, datasets and peft costs seconds of CPU, a fork of a process that holds them
some hundredths. The server imports, and does nothing else: a process that has used a thread pool or a GPU must not be
forked. It runs the very same entry script as a shell would, in a child with its own process group, environment,
standard output and claim.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import struct
import sys
from pathlib import Path

from src.cli import die_with_parent, signal_group, tied_environment

READY = b"ready"
NUMBER = struct.Struct("i")  # on a child's pipe: its process id at the start, its exit code at the end


def main(connection: socket.socket, preload: str) -> None:
    """Serve until the scheduler hangs up; a forked child leaves the loop and runs its script."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    importlib.import_module(preload)
    _check_forkable()
    gc.collect()
    gc.freeze()  # children do not copy pages by looking through what they never free
    connection.send(READY)
    if (command := _serve(connection)) is not None:
        sys.argv = command[1:]
        sys.path[0] = str(Path(command[1]).absolute().parent)
        runpy.run_path(command[1], run_name="__main__")


def _check_forkable() -> None:
    """Exit with a message where the imports have started threads of their own, or a GPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise SystemExit("CUDA is initialised by an import")
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    # jemalloc, which comes with pyarrow, restarts its thread in a forked child
    if len([name for name in names if not name.startswith("jemalloc")]) > 1:
        raise SystemExit(f"the imports have started threads ({', '.join(names)})")


def _serve(connection: socket.socket) -> list[str] | None:
    """Fork a child for each request. Returns its command in the child, None in the server when it is to end."""
    children: dict[int, tuple[int, int]] = {}  # pidfd -> process id, pipe for its end
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd != connection.fileno():  # a child has ended: end its group while nobody else can have its number
                poll.unregister(fd)
                pid, pipe = children.pop(fd)
                signal_group(pid)
                _tell(pipe, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(pipe)
                os.close(fd)
                continue
            message, fds, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            if not message:
                for pid, _ in children.values():
                    signal_group(pid)
                return None
            log, pipe, *claim = fds
            request = json.loads(message)
            environment = tied_environment(request["env"])
            pid = os.fork()
            if pid == 0:
                connection.close()
                for other, (_, its_pipe) in children.items():
                    os.close(other)
                    os.close(its_pipe)
                os.close(pipe)
                _become_child(environment, log)
                return request["command"]
            os.setpgid(pid, pid)  # here and in the child: whoever is first
            for fd in (log, *claim):
                os.close(fd)
            pidfd = os.pidfd_open(pid)
            children[pidfd] = pid, pipe
            poll.register(pidfd, select.POLLIN)
            _tell(pipe, pid)


def _become_child(environment: dict[str, str], log: int) -> None:
    """Be like a fresh process: own group, streams, environment, signals and random numbers."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(null)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()


def _tell(pipe: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the scheduler no longer listens
        os.write(pipe, NUMBER.pack(number))
