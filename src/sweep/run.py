"""`run_sweep`, the whole of what both sampling scripts do: train the subsets wanted, or say what there is to do."""

import argparse
import contextlib
import os
import shlex
import signal
import socket
import sys
from pathlib import Path

from src.results import SWEEP_MERGES
from src.subsets import Subset
from src.sweep.agenda import Agenda, Items
from src.sweep.checked import keep
from src.sweep.children import device_environment, make_starter, resolve_devices
from src.sweep.ledger import Ledger
from src.sweep.scheduler import Scheduler
from src.sweep.status import Progress, Tally, announce, print_dry_run, print_status, report
from src.sweep.workers import launch

SETS = Path("sampled_tasks")


def run_sweep(args: argparse.Namespace, items: Items) -> int:
    """Do what the command line says; return 0, 1 where subsets failed or a disk did, 128 + n after signal n.

    Raises InputError for bad input, before anything runs, or where a child was given bad flags.
    """
    devices = resolve_devices(args.device) if args.launcher == "local" else []
    folder = SETS / args.task_set_name
    slots = [device for _ in range(args.jobs_per_device) for device in devices]
    environments = {device: os.environ | device_environment(device, len(slots)) | {SWEEP_MERGES: "1"}
                    for device in devices}
    agenda = Agenda(args, items, environments[devices[0]] if devices else os.environ, folder)
    code, at_once = 0, len(slots) or args.workers
    try:
        if args.status:
            print_status(agenda, Ledger(folder))
        elif args.dry_run:
            print_dry_run(agenda, Ledger(folder), at_once)
        elif args.launcher == "local":
            code = _train(agenda, *_begin(agenda, folder, args.ledger, at_once), slots, environments)
        else:
            code = launch(args, _begin(agenda, folder, args.ledger or "heartbeat", at_once)[0])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # piped into `head`: nobody reads on, so end as by a signal, without a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left at its exit
        return 128 + signal.SIGPIPE
    except OSError as error:  # a full disk, a lost file server: the ledger holds what is true
        print(f"error: {error}; the sweep ends, nothing was recorded that is not so. Put it right, then give the same "
              "command again", file=sys.stderr)
        return 1


def _begin(agenda: Agenda, folder: Path, mode: str | None, at_once: int) -> tuple[Ledger, list[Subset]]:
    """Open the ledger, draw what is missing, and say so."""
    agenda.results.check_writable()
    ledger = Ledger.open(folder, mode)
    keep(agenda.answer, agenda.kept)
    subsets = agenda.subsets(ledger, write=True)
    ledger.want(shlex.join(["python", sys.argv[0], *agenda.args.command_line]), [" ".join(each) for each in subsets])
    for members in announce(agenda, ledger, subsets, at_once):
        if not agenda.has_rows(members):  # another sweep may have put them there meanwhile
            ledger.undo(agenda.key(members))
    if agenda.args.retry_failed:
        for members in subsets:
            ledger.forget_failures(agenda.key(members))
    return ledger, subsets


def _train(agenda: Agenda, ledger: Ledger, subsets: list[Subset], slots: list[str], environments: dict) -> int:
    args = agenda.args
    done = [members for members in subsets if ledger.is_done(agenda.key(members))]
    for members in done:
        agenda.delete_checkpoints(members)  # a crash may have come between commit and deletion
    tally = Tally(len(subsets))
    warm = set(slots) == {"cpu"} if args.warm_start is None else args.warm_start
    log = ledger.folder / "logs" / f"forkserver-{socket.gethostname()}-{os.getpid()}.log"
    ledger.write_text_file()
    try:
        with (contextlib.closing(make_starter(warm and len(done) < len(subsets), log, environments[slots[0]],
                                              agenda.items.preload)) as starter, Progress(tally) as bar):
            Scheduler(agenda, ledger, subsets, slots, environments, starter, bar).run()
    finally:
        ledger.write_text_file()
    return report(agenda, ledger, tally)
