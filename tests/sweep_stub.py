"""The sweep of stub children over the items a, b, c, ...: `python tests/sweep_stub.py NUMBER_OF_ITEMS --flags`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from src import claims
from src.cli import run_as_script
from src.subsets import subset
from src.sweep.agenda import Items
from src.sweep.flags import parse, sweep_parser
from src.sweep.run import run_sweep

CHILD = str(Path(__file__).with_name("stub_child.py"))


def main() -> int:
    parser = sweep_parser(__doc__, CHILD)
    parser.add_argument("number", type=int)
    parser.add_argument("--stale_after", type=float, default=claims.STALE_AFTER)
    args = parse(parser)
    claims.STALE_AFTER, claims.RENEW_EVERY = args.stale_after, args.stale_after / 20
    names = subset(chr(ord("a") + index) if args.number <= 26 else f"t{index}" for index in range(args.number))
    return run_sweep(args, Items(names, lambda members: ["--task_names", *members], preload="src.results"))


if __name__ == "__main__":
    run_as_script(main)
