"""A sweep: plan the subsets, train each in a child process, record what is completed. Ends when all of them are.

The loop of one scheduler: claim the next subset that is neither done nor somebody else's, start its child on a free
slot, wait until some child ends, commit or record the failure. The ledger (src/sweep/ledger.py) makes any number of
schedulers safe side by side and after a crash; nothing here remembers what the ledger does not hold.

A child that exits with 0 and has left completed rows of every run is committed. One that exits with 2 was given bad
flags: that ends the sweep at once, with its message. Everything else is a failed attempt.
"""

import argparse
import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from src.cli import InputError, describe_exit, did_you_mean, warn
from src.identity import settings_of, short_hash
from src.results import Results
from src.subsets import Space, Subset, cluster_file, coverage, draw, read_clusters, read_subsets, subset
from src.sweep.children import (
    PRELOAD,
    ROOT,
    Child,
    ShellStarter,
    WarmStarter,
    device_environment,
    resolve_devices,
    signal_group,
)
from src.sweep.ledger import Claim, Ledger
from src.sweep.workers import run_ray, submit_slurm

SETS = Path("sampled_tasks")
BAD_FLAGS = 2  # exit code of a child that refuses its command line
GRACE = 2.0  # seconds between TERM and KILL
LOOK_AGAIN = 0.5  # seconds between looks at subsets that others are training
LOG_TAIL = 12  # lines of a child's log that are shown


@dataclass(frozen=True)
class Items:
    """What a script samples from: its items, each with a hash of its content, and how a child is told of them."""

    hashes: Mapping[str, str]
    script: str
    flags: Callable[[Subset], list[str]]
    task: str | None = None  # of which a bare index in a cluster file names a template
    preload: str = PRELOAD  # module whose import warms up the script


@dataclass
class Running:
    """A subset in training."""

    members: Subset
    claim: Claim
    child: Child
    device: str
    log: Path
    since: float
    stopped: str | None = None  # why it was told to end
    kill_at: float = float("inf")


def run_sweep(args: argparse.Namespace, items: Items) -> int:
    """Do what the command line says; return the exit code. Raises InputError for bad input, before anything runs."""
    sweep = Sweep(args, items)
    do = (sweep.print_status if args.status else sweep.print_dry_run if args.dry_run else
          sweep.run if args.launcher == "local" else sweep.launch_workers)
    try:
        code = do()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # piped into `head`: nobody reads on, so end as by a signal, without a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left at its exit
        return 128 + signal.SIGPIPE
    except OSError as error:  # a full disk, a lost file server: the ledger holds what is true
        print(f"error: {error}; the sweep ends, nothing was recorded that is not so. Put it right, then give the same "
              "command again", file=sys.stderr)
        return 1


class Sweep:
    """One scheduler of a task set.

    Args:
        args: of `sweep_args.parse`.
        items: what is sampled.
    """

    def __init__(self, args: argparse.Namespace, items: Items):
        self.args, self.items = args, items
        self.folder = SETS / args.task_set_name
        self.results = Results(args.results_dir, args.save_name)
        self.settings = {"script": items.script, **settings_of(args.child), "seed": str(args.seed),
                         "runs": str(args.runs), "results": str(self.results.folder), "task_dir": args.task_dir}
        names = subset(items.hashes)
        for name in args.child:
            if f"--{name}" in items.flags(names[:1]):
                raise InputError(f"--{name} is set by the sweep, to the items of each subset")
        clusters = () if args.current_cluster_dir == "none" else read_clusters(
            cluster_file("--current_cluster_dir", args.current_cluster_dir), names, items.task)
        targets = subset(f"{items.task}_{t}" if items.task and t.isdigit() else t for t in args.target_tasks)
        self.fixed: list[Subset] | None = None
        if args.subsets_file:
            self.fixed = read_subsets(args.subsets_file, names, items.task)
            sizes = [len(members) for members in self.fixed]
            self.space = Space(names, min(sizes), max(sizes))
        else:
            self.space = Space(names, args.min_task_num, args.max_task_num, targets, clusters)
        if args.from_estimate:
            self.fixed = self._most_relevant(self.space)
        if args.preload_combos:
            start, end = args.combos_section or (0, None)
            self.fixed = list(islice(self.space.combinations(), start, end))
            if not self.fixed:
                raise InputError(f"--combos_section {start} {end}: there are {self.space.possible()} combinations")
        self.devices = resolve_devices(args.device) if args.launcher == "local" else []
        self.queue: deque[Subset] = deque()
        self.running: list[Running] = []
        self.outcomes: Counter[str] = Counter()  # of subsets that this scheduler knows to be settled
        self.failed: list[Subset] = []
        self.interrupted: int | None = None  # by which signal
        self.refused: str | None = None  # message of a child that was given bad flags

    def _most_relevant(self, space: Space) -> list[Subset]:
        """The subsets of `space` that matter most by the estimates of --from_estimate, --num_samples of them."""
        from src.scores import oriented, rank_subsets, read_scores

        args = self.args
        folder = Path(args.results_dir) / args.from_estimate
        if not (folder / "runs.csv").exists():
            near = did_you_mean(folder.name, [path.name for path in folder.parent.glob("*/")])
            raise InputError(f"--from_estimate {args.from_estimate}: there is no {folder / 'runs.csv'}; {near}")
        if args.save_name == args.from_estimate:
            ways = {json.loads(path.read_text(encoding="utf-8"))["estimate"]["chosen_by"]
                    for path in (folder / "runs").glob("estimate-s*.json")}
            if ways != {"calibration"}:
                raise InputError(
                    f"--from_estimate {args.from_estimate}: these estimates were not calibrated on true trainings, so "
                    "true scores cannot stand beside them; give another --save_name, and calibrate on what it holds")
        estimates = oriented(read_scores(folder, statuses=("estimated",)), "loss", dict)
        ranked = rank_subsets(estimates, args.rank_by)
        found = [members for members in (subset(line.split()) for line in ranked) if members in space]
        if not found:
            raise InputError(f"--from_estimate {args.from_estimate}: {folder} estimates no subset of "
                             f"{space.smallest} to {space.largest} of {', '.join(space.items)}")
        return found[:args.num_samples]

    # ---- what there is to do ---------------------------------------------------------------------------------------

    def key(self, members: Subset) -> str:
        """Hash of all that changes a subset's result: settings, seeds, members and their content."""
        return short_hash([self.settings, [(item, self.items.hashes[item]) for item in members]], 16)

    def words(self, members: Subset) -> dict:
        """The same for people."""
        return {"subset": " ".join(members), "settings": self.settings}

    def plan(self, ledger: Ledger, write: bool) -> list[Subset]:
        """The subsets wanted: fixed, or the plan so far and as many new draws as --num_samples asks for.

        The plan is drawn once for all sweeps of the task set, so that those that run at the same time agree on it.
        Where it holds more than are wanted, completed ones come first.
        """
        wanted = self.args.num_samples
        while True:
            if self.fixed is not None:
                plan, new = self.fixed, []
            else:
                lines, extensions = ledger.plan()
                drawn = [subset(line.split()) for line in lines]
                plan = [members for members in drawn if members in self.space]
                missing = None if wanted is None else wanted - len(plan)
                new = draw(self.space, missing, self.args.seed, self.args.draw == "balanced", drawn)
            if new and write:
                comment = f"{len(new)} subsets, --draw {self.args.draw} --seed {self.args.seed}"
                if not ledger.extend_plan(extensions, [" ".join(members) for members in new], comment):
                    continue  # another sweep has drawn meanwhile
            plan = plan + new
            if wanted is not None and len(plan) > wanted and not self.args.subsets_file:
                done = ledger.done()
                plan = sorted(plan, key=lambda members: self.key(members) not in done)[:wanted]
            return plan

    def command(self, members: Subset) -> list[str]:
        """The child's command. Repeated, it keeps the runs that are completed and goes on from the last checkpoint."""
        script = ROOT / self.items.script
        script = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
        flags = {**self.args.child, "task_dir": [self.args.task_dir], "seed": [str(self.args.seed)],
                 "runs": [str(self.args.runs)], "output_dir": [self.args.output_dir],
                 "results_dir": [self.args.results_dir], "save_name": [self.args.save_name],
                 "run_name": [self.key(members)]}
        if self.devices == ["cpu"]:
            flags["use_cpu"] = ["True"]
        return [sys.executable, str(script), *self.items.flags(members),
                *(word for name, values in flags.items() for word in (f"--{name}", *values))]

    def _run_ids(self, members: Subset) -> list[str]:
        return [f"{self.key(members)}-s{self.args.seed + run}" for run in range(self.args.runs)]

    def _state(self, ledger: Ledger, members: Subset) -> str:
        key = self.key(members)
        if ledger.is_done(key):
            return "done"
        if ledger.is_claimed(key):
            return "running"
        return "failed" if len(ledger.attempts(key)) > self.args.retries else "left"

    def _announce(self, ledger: Ledger, plan: list[Subset]) -> None:
        """Say before the start what is wanted, possible, covered and done already, and under which settings."""
        count = len(plan)
        if self.fixed is None:
            possible = self.space.possible()
            print(f"{count} subsets wanted, {possible} possible" + (
                f" (--num_samples {self.args.num_samples} is more: all of them are trained)"
                if (self.args.num_samples or 0) > possible else ""))
        else:
            print(f"{count} subsets given")
        print(coverage(self.space, plan))
        done = ledger.done()
        here = sum(self.key(members) in done for members in plan)
        if here:
            print(f"{here} of {count} are done already" + (": nothing is left to do" if here == count else ""))
        words = {" ".join(members) for members in plan if self.key(members) not in done}
        other = [record for record in done.values() if record["subset"] in words]
        if other:
            before = other[-1]["settings"]
            changed = [f"{name} was {before.get(name, 'not given')}, is {self.settings.get(name, 'not given')}"
                       for name in sorted(before.keys() | self.settings.keys())
                       if before.get(name) != self.settings.get(name)] or ["their task files were changed"]
            print(f"{len({record['subset'] for record in other})} of them were trained under other settings and are "
                  f"trained again ({'; '.join(changed)}); in the CSV files runs of different config_hash stay apart")

    def print_dry_run(self) -> int:
        ledger = Ledger(self.folder)
        plan = self.plan(ledger, write=False)
        self._announce(ledger, plan)
        for number, members in enumerate(plan, 1):
            print(f"\n[{number}] {' '.join(members)}: {self._state(ledger, members)}")
            print(shlex.join(self.command(members)))
        return 0

    def print_status(self) -> int:
        """Print the state of each subset, failures with their last reason and log."""
        ledger = Ledger(self.folder)
        plan = self.plan(ledger, write=False)
        states = {members: self._state(ledger, members) for members in plan}
        for members, state in states.items():
            last = ledger.attempts(self.key(members))[-1:] if state != "done" else []
            print(f"{state:8} {' '.join(members)}" + "".join(f"  ({a['reason']}, see {a['log']})" for a in last))
        count = Counter(states.values())
        print(", ".join(f"{count[state]} {state}" for state in ("done", "running", "failed", "left")))
        print(coverage(self.space, [members for members in plan if states[members] == "done"]))
        return 0

    # ---- the scheduler ---------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train what is left; return 0, 1 where subsets failed, 2 for bad flags, 128 + n after signal n."""
        args = self.args
        self.results.check_writable()
        self.ledger = ledger = Ledger.open(self.folder, args.ledger)
        plan = self.plan(ledger, write=True)
        self._announce(ledger, plan)
        for members in plan:
            if args.retry_failed:
                ledger.forget_failures(self.key(members))
            if ledger.is_done(self.key(members)):
                self._delete_checkpoints(members)  # a crash may have come between commit and deletion
        self.queue = deque(plan)
        self.total, self.began = len(plan), time.monotonic()
        self.slots = [device for _ in range(args.jobs_per_device) for device in self.devices]
        self.environment = {device: os.environ | device_environment(device, len(self.slots)) for device in self.devices}
        ledger.write_text_file()
        try:
            with (contextlib.closing(self._starter()) as self.starter, _wake_up_on_signals(self) as wake_up,
                  _Progress(self) as self.bar):
                self._schedule(wake_up)
        finally:
            for job in self.running:  # only after an error in here
                signal_group(job.child.pid, signal.SIGKILL)
                job.child.finish()
                job.claim.release()
        return self._report()

    def _starter(self) -> ShellStarter | WarmStarter:
        warm = self.devices == ["cpu"] if self.args.warm_start is None else self.args.warm_start
        if warm and not all(self.ledger.is_done(self.key(members)) for members in self.queue):
            log = self.folder / "logs" / f"forkserver-{socket.gethostname()}-{os.getpid()}.log"
            try:
                return WarmStarter(log, self.environment[self.devices[0]], self.items.preload)
            except RuntimeError as error:
                warn(f"no warm start, each child starts afresh: {error}")
        return ShellStarter()

    def _schedule(self, wake_up: socket.socket) -> None:
        while True:
            while self.slots and self.queue and not (self.interrupted or self.refused):
                if not self._start_next():
                    break
            if not self.running and (self.interrupted or self.refused or not self.queue):
                return
            busy_elsewhere = self.queue and self.slots
            due = min((job.kill_at for job in self.running), default=float("inf")) - time.monotonic()
            timeout = min(LOOK_AGAIN if busy_elsewhere else 1.0, max(0.0, due))
            ready, _, _ = select.select([wake_up, *(job.child for job in self.running)], [], [], timeout)
            if wake_up in ready:
                wake_up.recv(4096)
            for job in [job for job in self.running if job.child in ready]:
                self._finish(job)
            self._look_after()
            self.bar.update()

    def _start_next(self) -> bool:
        """Start the first subset of the queue that can be claimed; False where there is none."""
        for _ in range(len(self.queue)):
            members = self.queue.popleft()
            key, name = self.key(members), " ".join(members)
            if self.ledger.is_done(key):
                self.outcomes["done"] += 1
                continue
            if (claim := self.ledger.claim(key, json.dumps(self.words(members), indent=1))) is None:
                self.queue.append(members)  # somebody else's: look again later
                continue
            attempts = len(self.ledger.attempts(key))
            if self._has_rows(members):
                self._commit(members, claim, None, "its finished rows were found")
            elif attempts > self.args.retries:
                claim.release()
                self._settle_failed(members)
            else:
                device = self.slots.pop()
                log = self.folder / "logs" / f"{key}.{attempts + 1}.log"
                command = self.command(members)
                try:
                    log.write_text(f"# {name}\n# {shlex.join(command)}\n")
                    child = self.starter.start(command, self.environment[device], log, claim.fd)
                except BaseException:
                    claim.release()
                    raise
                self.running.append(Running(members, claim, child, device, log, time.monotonic()))
                return True
        return False

    def _look_after(self) -> None:
        """Renew claims; end children that must not go on: TERM first, KILL after some seconds."""
        now = time.monotonic()
        for job in self.running:
            if job.stopped is None:
                if self.interrupted or self.refused:
                    job.stopped = "interrupted"
                elif self.args.subset_timeout and now - job.since > self.args.subset_timeout:
                    job.stopped = f"timed out after {self.args.subset_timeout:g} s"
                elif not job.claim.renew():
                    job.stopped = "interrupted"
                    warn(f"{' '.join(job.members)}: the claim was lost, this process stood still for too long")
                if job.stopped:
                    signal_group(job.child.pid, signal.SIGTERM)
                    job.kill_at = now + GRACE
            elif now >= job.kill_at:
                signal_group(job.child.pid, signal.SIGKILL)
                job.kill_at = float("inf")

    def _finish(self, job: Running) -> None:
        """A child has ended: commit, record the failure, or give the subset back."""
        code = job.child.finish()
        self.running.remove(job)
        self.slots.append(job.device)
        members = job.members
        seconds = time.monotonic() - job.since
        if code == 0 and self._has_rows(members):
            self._commit(members, job.claim, job.log, f"{seconds:.1f} s")
            return
        try:
            if job.stopped == "interrupted":
                self.queue.append(members)
                return
            if code == BAD_FLAGS and job.stopped is None:
                self.refused = f"{shlex.join(self.command(members))}\n{_tail(job.log)}"
                return
            reason = job.stopped or (describe_exit(code) if code else "exit code 0, but without completed rows")
            attempts = self.ledger.fail(self.key(members), " ".join(members), reason, str(job.log))
        finally:
            job.claim.release()
        again = attempts <= self.args.retries
        self.bar.say(f"failed  {' '.join(members)}: {reason}, see {job.log}" + ("; tried again" if again else ""))
        if again:
            self.queue.append(members)
        else:
            self._settle_failed(members)

    def _commit(self, members: Subset, claim: Claim, log: Path | None, how: str) -> None:
        key = self.key(members)
        try:
            if log is None:  # of a child that may have died between its rows and the merged files
                self.results.merge()
            record = self.words(members) | {"runs": self._run_ids(members), "log": str(log) if log else None}
            first = self.ledger.commit(key, record)
            self.ledger.forget_failures(key)
            self._delete_checkpoints(members)
        finally:
            claim.release()
        self.outcomes["done"] += 1
        self.outcomes["trained"] += log is not None
        if first:
            self.bar.say(f"done    {' '.join(members)}: {how}")

    def _settle_failed(self, members: Subset) -> None:
        self.outcomes["failed"] += 1
        self.failed.append(members)

    def _has_rows(self, members: Subset) -> bool:
        return all(map(self.results.is_completed, self._run_ids(members)))

    def _delete_checkpoints(self, members: Subset) -> None:
        if not self.args.keep_checkpoints:
            for run_id in self._run_ids(members):
                shutil.rmtree(Path(self.args.output_dir) / run_id, ignore_errors=True)

    def _report(self) -> int:
        left = self.total - self.outcomes["done"] - self.outcomes["failed"]
        print(f"{self.outcomes['done']} done, {self.outcomes['failed']} failed, {left} left; "
              f"subsets: {self.ledger.text_file}, results: {self.results.folder}/")
        if self.refused:
            raise InputError(f"a child refused its command line, so the sweep was stopped\n{self.refused}")
        for members in self.failed:
            last = self.ledger.attempts(self.key(members))[-1]
            print(f"failed: {' '.join(members)}: {last['reason']}, see {last['log']}", file=sys.stderr)
        if self.interrupted:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return 128 + self.interrupted
        if self.failed:
            print("--retry_failed tries them again", file=sys.stderr)
        return 1 if self.failed else 0

    # ---- many machines ---------------------------------------------------------------------------------------------

    def launch_workers(self) -> int:
        """Have the same command run by workers elsewhere. They are told apart by nothing but the ledger."""
        args = self.args
        self.results.check_writable()
        ledger = Ledger.open(self.folder, args.ledger or "heartbeat")
        plan = self.plan(ledger, write=True)
        self._announce(ledger, plan)
        if args.retry_failed:
            for members in plan:
                ledger.forget_failures(self.key(members))
        split = args.command_line.index("--") if "--" in args.command_line else len(args.command_line)
        on_gpu = args.device != ["cpu"]
        command = [sys.executable, sys.argv[0], *args.command_line[:split], "--launcher", "local", "--ledger",
                   ledger.mode, "--device", "all" if on_gpu else "cpu", "--retry_failed", "False",
                   *args.command_line[split:]]
        if args.launcher == "ray":
            return run_ray(command, args.workers, on_gpu)
        log = self.folder.absolute() / "logs" / "slurm-%A_%a.log"
        options = {"job-name": args.task_set_name, "partition": args.partition, "gres": args.gres, "time": args.time}
        job = submit_slurm(command, args.workers, log, options, args.requeue)
        print(f"SLURM job {job}: {args.workers} workers, logs {log}; --status shows how far they are")
        return 0


class _wake_up_on_signals:
    """Note SIGINT and SIGTERM in `sweep.interrupted`, and wake the loop up; a second one kills the children at once."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, sweep: Sweep):
        self.sweep = sweep

    def __enter__(self) -> socket.socket:
        self.reading, self.writing = socket.socketpair()
        self.writing.setblocking(False)
        self.old_fd = signal.set_wakeup_fd(self.writing.fileno(), warn_on_full_buffer=False)
        self.old = {number: signal.signal(number, self._note) for number in self.NUMBERS}
        return self.reading

    def _note(self, number: int, _frame) -> None:
        if self.sweep.interrupted:
            for job in self.sweep.running:
                signal_group(job.child.pid, signal.SIGKILL)
        self.sweep.interrupted = number

    def __exit__(self, *_) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.old_fd)
        self.reading.close()
        self.writing.close()


class _Progress:
    """A bar with counts, rate and time left on a terminal; elsewhere a line for each subset."""

    def __init__(self, sweep: Sweep):
        self.sweep = sweep

    def __enter__(self) -> "_Progress":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.console = Console(soft_wrap=True, highlight=False, markup=False)
        # no thread of its own: children are forked from this process
        self.bar = Progress(BarColumn(), TextColumn("{task.description}"), console=self.console, auto_refresh=False)
        self.task = self.bar.add_task("", total=self.sweep.total)
        if self.console.is_terminal:
            self.bar.start()
            self.update()
        return self

    def __exit__(self, *_) -> None:
        if self.console.is_terminal:
            self.update()
            self.bar.stop()

    def _counts(self) -> str:
        outcomes, elapsed = self.sweep.outcomes, time.monotonic() - self.sweep.began
        left = self.sweep.total - outcomes["done"] - outcomes["failed"]
        text = f"{outcomes['done']} done, {outcomes['failed']} failed, {left} left"
        if outcomes["trained"]:
            rate = outcomes["trained"] / elapsed
            minutes, seconds = divmod(round(left / rate), 60)
            text += f", {rate * 60:.1f} a minute, {minutes // 60}:{minutes % 60:02}:{seconds:02} to go"
        return text

    def say(self, line: str) -> None:
        if self.console.is_terminal:
            self.console.print(line)
        else:
            print(f"{line}  [{self._counts()}]", flush=True)

    def update(self) -> None:
        if self.console.is_terminal:
            outcomes = self.sweep.outcomes
            self.bar.update(self.task, completed=outcomes["done"] + outcomes["failed"], description=self._counts(),
                            refresh=True)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
