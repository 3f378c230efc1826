"""The loop of one scheduler: claim a subset that is neither done nor somebody else's, start its child on a free slot,
wait until some child ends, commit or record the failure. Ends when all subsets are settled.

The ledger (src/sweep/ledger.py) makes any number of schedulers safe side by side and after a crash; nothing here
remembers what the ledger does not hold.

A child that exits with 0 and has left completed rows of every run is committed. One that exits with 2 was given bad
flags: that ends the sweep at once, with its message. Everything else is a failed attempt.
"""

import contextlib
import json
import select
import shlex
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from src.claims import Claim
from src.cli import describe_exit, signal_group, warn
from src.results import Results
from src.subsets import Subset
from src.sweep.agenda import Agenda
from src.sweep.children import Child, ShellStarter, WarmStarter
from src.sweep.ledger import Ledger
from src.sweep.status import Progress

BAD_FLAGS = 2  # exit code of a child that refuses its command line
NOTED = (signal.SIGINT, signal.SIGTERM)
GRACE = 2.0  # seconds between TERM and KILL
LOOK_AGAIN = 0.5  # seconds between looks at subsets that others are training
MERGE_EVERY = 30.0  # seconds between merges of the results, and
MERGE_SHARE = 0.01  # of the time at most
LOG_TAIL = 12  # lines of a child's log that are shown


@dataclass
class Running:
    """A subset in training."""

    members: Subset
    claim: Claim
    child: Child
    command: list[str]
    device: str
    log: Path
    since: float
    stopped: str | None = None  # why it was told to end
    kill_at: float = float("inf")

    def stop(self, why: str) -> None:
        """TERM now; whoever looks after the child sends KILL when it is time."""
        self.stopped, self.kill_at = why, time.monotonic() + GRACE
        signal_group(self.child.pid, signal.SIGTERM)

    def refusal(self) -> str:
        last = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL:]
        return "\n".join([shlex.join(self.command), *last])


class Merging:
    """Brings the CSV files up to date with what the children have left, but not again before it is worth its time."""

    def __init__(self, results: Results):
        self.results, self.due = results, time.monotonic() + MERGE_EVERY

    def when_due(self) -> None:
        if time.monotonic() >= self.due:
            self.now()

    def now(self) -> None:
        began = time.monotonic()
        self.results.merge()
        took = time.monotonic() - began
        self.due = began + took + max(MERGE_EVERY, took / MERGE_SHARE)


class Scheduler:
    """Trains what is left of `subsets`.

    Args:
        slots: a device for each child that may run at the same time.
        environments: of the children on each device.
        bar: shows, and its tally holds, how far this is.
    """

    def __init__(self, agenda: Agenda, ledger: Ledger, subsets: list[Subset], slots: list[str],
                 environments: Mapping[str, Mapping[str, str]], starter: ShellStarter | WarmStarter, bar: Progress):
        self.agenda, self.args, self.ledger = agenda, agenda.args, ledger
        self.slots, self.environments, self.starter = slots, environments, starter
        self.bar, self.tally = bar, bar.tally
        self.subsets, self.queue = subsets, deque(subsets)
        self.running: list[Running] = []
        self.merging = Merging(agenda.results)

    def run(self) -> None:
        try:
            with _signals(self._interrupt) as wake_up:
                self._loop(wake_up)
                self.merging.now()
        finally:
            for job in self.running:  # only after an error in here
                signal_group(job.child.pid)
                job.child.finish()
                job.claim.release()

    def _interrupt(self, number: int) -> None:
        """The loop ends the children; a second signal kills them at once."""
        if self.tally.interrupted:
            for job in self.running:
                signal_group(job.child.pid)
        self.tally.interrupted = number

    def _loop(self, wake_up: socket.socket) -> None:
        while True:
            while self.slots and self.queue and not self.tally.is_ending:
                if not self._start_next():
                    break
            if not self.running and (self.tally.is_ending or not (self.queue or self._take_up_lost())):
                return
            due = min((job.kill_at for job in self.running), default=float("inf")) - time.monotonic()
            timeout = min(LOOK_AGAIN if self.queue and self.slots else 1.0, max(0.0, due))  # others train the queue
            ready, _, _ = select.select([wake_up, *(job.child for job in self.running)], [], [], timeout)
            if wake_up in ready:
                wake_up.recv(4096)
            for job in [job for job in self.running if job.child in ready]:
                self._finish(job)
            self._look_after()
            self.merging.when_due()
            self.ledger.write_text_when_due()
            self.bar.update()

    def _take_up_lost(self) -> bool:
        """Queue what was completed, but lacks rows: deleted meanwhile, or trained by a sweep that asks for less."""
        failed = set(self.tally.failed)
        lost = [members for members in self.subsets if members not in failed and not self.agenda.has_rows(members)]
        for members in lost:
            self.ledger.undo(self.agenda.key(members))
            self.tally.done -= 1
            self.bar.say(f"again   {' '.join(members)}: its rows were deleted, or others asked for less")
        self.queue.extend(lost)
        return bool(lost)

    def _start_next(self) -> bool:
        """Start the first subset of the queue that can be claimed; False where there is none."""
        for _ in range(len(self.queue)):
            members = self.queue.popleft()
            key = self.agenda.key(members)
            if self.ledger.is_done(key):
                self.tally.done += 1
                continue
            if (claim := self.ledger.claim(key, json.dumps(self.agenda.words(members), indent=1))) is None:
                self.queue.append(members)  # somebody else's: look again later
                continue
            attempts = len(self.ledger.attempts(key))
            if self.agenda.has_rows(members):
                self._commit(members, claim, None, "its finished rows were found")
            elif attempts > self.args.retries:
                claim.release()
                self.tally.failed.append(members)
            else:
                device = self.slots.pop()
                log = self.ledger.folder / "logs" / f"{key}.{attempts + 1}.log"
                command = self.agenda.command(members)
                try:
                    log.write_text(f"# {' '.join(members)}\n# {shlex.join(command)}\n")
                    child = self.starter.start(command, self.environments[device], log, claim.fd)
                except BaseException:
                    claim.release()
                    raise
                self.running.append(Running(members, claim, child, command, device, log, time.monotonic()))
                return True
        return False

    def _look_after(self) -> None:
        """Renew claims; end children that must not go on: TERM first, KILL after some seconds."""
        now = time.monotonic()
        for job in self.running:
            if job.stopped is None:
                if self.tally.is_ending:
                    job.stop("interrupted")
                elif self.args.subset_timeout and now - job.since > self.args.subset_timeout:
                    job.stop(f"timed out after {self.args.subset_timeout:g} s")
                elif not job.claim.renew():
                    job.stop("interrupted")
                    warn(f"{' '.join(job.members)}: the claim was lost, this process stood still for too long")
            elif now >= job.kill_at:
                signal_group(job.child.pid)
                job.kill_at = float("inf")

    def _finish(self, job: Running) -> None:
        """A child has ended: commit, record the failure, or give the subset back."""
        code = job.child.finish()
        self.running.remove(job)
        self.slots.append(job.device)
        members, name = job.members, " ".join(job.members)
        if code == 0 and self.agenda.has_rows(members):
            self._commit(members, job.claim, job.log, f"{time.monotonic() - job.since:.1f} s")
            return
        try:
            if job.stopped == "interrupted":
                self.queue.append(members)
                return
            if code == BAD_FLAGS and job.stopped is None:
                self.tally.refused = job.refusal()
                return
            reason = job.stopped or (describe_exit(code) if code else "exit code 0, but without completed rows")
            record = self.agenda.words(members) | {"retries": self.args.retries}
            again = self.ledger.fail(self.agenda.key(members), record, reason, str(job.log)) <= self.args.retries
        finally:
            job.claim.release()
        self.bar.say(f"failed  {name}: {reason}, see {job.log}" + ("; tried again" if again else ""))
        (self.queue if again else self.tally.failed).append(members)

    def _commit(self, members: Subset, claim: Claim, log: Path | None, how: str) -> None:
        key = self.agenda.key(members)
        try:
            record = self.agenda.words(members) | {"runs": self.agenda.run_ids(members), "log": log and str(log)}
            first = self.ledger.commit(key, record)
            self.ledger.forget_failures(key)
            self.agenda.delete_checkpoints(members)
        finally:
            claim.release()
        self.tally.done += 1
        self.tally.trained += log is not None
        if first:
            self.bar.say(f"done    {' '.join(members)}: {how}")


@contextlib.contextmanager
def _signals(note: Callable[[int], None]) -> Iterator[socket.socket]:
    """Have SIGINT and SIGTERM noted; each makes the socket readable, so that a `select` over it wakes up."""
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    with reading, writing:
        old_fd = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        old = {number: signal.signal(number, lambda number, _: note(number)) for number in NOTED}
        try:
            yield reading
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_fd)
