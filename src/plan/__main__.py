"""From results to a plan: which subsets to train, so that each item is served as well as possible by one of them.

    python -m src.plan --save_name NAME                            the plan by what is trained so far
    python -m src.plan --save_name NAME --write_subsets next.txt   ... and what to train next (exit code 3; 0: settled)
    python -m src.plan --save_name NAME --confirm_seed 43          ... reported by a seed that had no part in the choice
    python -m src.plan --save_name NAME --target rte               which sources and subsets are best for one item
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from src.cli import InputError, OneLineErrors, add_results_flags, check_effects, check_seed, run_as_script, say_page
from src.cluster.lists import write_lines
from src.cost import ahead, finished
from src.files import check_writable, write_whole
from src.names import check_name
from src.plan import known, rivals, rounds, show, target
from src.plan.choose import Worth, partition
from src.plan.predict import Process
from src.scores import provenance, results_file

UNIT_IN_WORDS = {"relative": "relative to the score alone", "points": "in points of the metric", "gain": "as given"}
LEFT = 3  # exit code: something is left to be trained


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineErrors(prog="python -m src.plan", description=__doc__)
    add = parser.add_argument
    add_results_flags(parser, split={"help": "scores to choose by (default: valid; those of the test split, where "
                                     "there are any, are then reported)"})
    add("--budget", type=int, help="most subsets in the plan, trained already or not (default: as many as items)")
    add("--overlap", action="store_true", help="items may be trained in several subsets; the best serves each "
        "(default: in exactly one)")
    add("--weights", metavar="FILE", help="lines `item weight`; the others count 1 (default: all count 1)")
    add("--target", metavar="ITEM", help="rank sources and subsets for this item, in place of a plan for all")
    add("--explore", type=int, default=2, metavar="N", help="subsets a round that may make a better plan; 0: only what "
        "the plan itself needs (default: 2)")
    add("--confirm_seed", type=int, metavar="SEED", help="runs of this seed do not choose, they only report (default: "
        "all choose; the optimism of the choice is estimated)")
    add("--write_subsets", metavar="FILE", help="write what to train next, for --subsets_file of the sweep")
    add("--clusters", metavar="NAME", help="clusters to compare with, a file or a name in --clusters_dir (default: "
        "--save_name, where there are such)")
    add("--clusters_dir", default="clusters", help="folder of cluster files; <save_name>_plan.txt is written there "
        "(default: clusters)")
    add("--seed", type=int, default=0, help="of resamples and of the search beyond 16 items (default: 0)")
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    args = make_parser().parse_args(arguments)
    check_name("--save_name", args.save_name)
    check_seed(args.seed)
    args.command = ["python", "-m", "src.plan", *(sys.argv[1:] if arguments is None else arguments)]
    if args.target:
        check_effects("--target", ("--budget", "--overlap", "--explore", "--confirm_seed", "--weights", "--clusters"),
                      sys.argv[1:] if arguments is None else arguments)
    if args.budget is not None and args.budget < 1:
        raise InputError(f"--budget {args.budget}: cannot serve all items; must be at least 1")
    if args.explore < 0:
        raise InputError(f"--explore {args.explore}: must be 0 or more")
    if args.write_subsets and not Path(args.write_subsets).parent.is_dir():
        raise InputError(f"--write_subsets {args.write_subsets}: there is no folder {Path(args.write_subsets).parent}")
    check_writable(f"--clusters_dir {args.clusters_dir} cannot be written", Path(args.clusters_dir))
    check_writable("plan.json cannot be written", Path(args.results_dir) / args.save_name)
    return args


def finish(args, following: list, why: str, runs: int | None = None) -> int:
    """Name and write what should be trained next, each so often (None: as what is finished); the exit code."""
    if not following:
        print(f"settled: {why}")
        say_page(args)
        return 0
    following = sorted(following, key=len)
    print(f"to be trained next, {len(following)} ({why}):")
    for members in following:
        print("  " + " ".join(members))
    cost = finished(Path(args.results_dir) / args.save_name / "runs.csv")
    print(f"that is {ahead(cost, len(following), runs)}")
    if args.write_subsets:
        write_lines(args.write_subsets, following)
        print(f"written: {args.write_subsets}")
    say_page(args)
    return LEFT


def of_items(args, ours: show.Rival, worth: Worth) -> tuple[list[str], dict[str, float]]:
    """How the gain of each item is known, and how often its training went over its rows, where that is recorded."""
    gains = worth.gains
    keys = {members.tobytes(): " ".join(sorted(gains.names(members))) for members in ours.plan.subsets}
    ran = known.passes(Path(args.results_dir) / args.save_name, set(keys.values()))
    passes = {item: ran.get(keys[ours.plan.of_item[i].tobytes()], {}).get(item) for i, item in enumerate(gains.items)}
    return ([rivals.how_known(worth, members) for members in ours.plan.of_item],
            {item: times for item, times in passes.items() if times is not None})


def write(args, record: dict) -> list[Path]:
    """plan.json, plan.png and, of a partition, its cluster file; their paths."""
    folder = Path(args.results_dir) / args.save_name
    write_whole(folder / "plan.json", json.dumps(record, indent=1) + "\n")
    show.draw(folder / "plan.png", record)
    clusters = Path(args.clusters_dir) / f"{args.save_name}_plan.txt"
    if sum(map(len, record["subsets"])) == len(record["served_by"]):
        write_lines(clusters, record["subsets"])
        return [folder / "plan.json", folder / "plan.png", clusters]
    clusters.unlink(missing_ok=True)  # of an earlier plan
    return [folder / "plan.json", folder / "plan.png"]


def plan_all(args, step: rounds.Step, worth: Worth, found: known.Known) -> tuple[list, str]:
    """Print and write the plan, confirmed where that is asked for; what should be trained next, and why."""
    plan, following, why = step.plan, step.next, step.why
    if not following and args.confirm_seed is not None:
        plan, following, why = rivals.confirmed(step, worth, found, args)
    beside = rivals.compare(plan, worth, found, args)
    if not following and args.confirm_seed is None and beside[-1].total[1] <= 0 and (plan.subsets.sum(1) > 1).any():
        why += "; by its interval it may be no better than alone: more --runs or --confirm_seed would tell"
    gains, process = worth.gains, worth.process
    how, passes = of_items(args, beside[-1], worth)
    show.print_plan(beside, gains, how, passes)
    print(show.predictor_line(process, gains.unit))
    print("no plan is worth more by these gains (exact)" if plan.exact else
          "how far the best plan by these gains is from it is not known")
    record = show.as_json(beside[-1], gains, not following, process) | show.details(beside, gains, how, passes) | {
        "next": [list(members) for members in following], "why": why, "metrics": found.metrics} | provenance(
            results_file(Path(args.results_dir) / args.save_name), args.command)
    print("written: " + ", ".join(map(str, write(args, record))))
    return following, why


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    table, source = known.read_table(args)
    if args.target and target.rank_transfer(args, table) and args.target not in known.own_items(table):
        return finish(args, [], "no training of the target itself is asked for")
    found = known.read(args, table, source)
    gains, file = found.gains, Path(args.results_dir) / args.save_name / "explored.txt"
    weights = known.read_weights(args.weights, gains.items)
    print(f"{len(gains.items)} items, {len(gains.members)} subsets with scores, metric {', '.join(found.metrics)}, "
          f"gains {UNIT_IN_WORDS[gains.unit]}")
    for members in sorted(found.failed, key=lambda members: (len(members), members)):
        print(f"not proposed, its training failed: {' '.join(members)}")
    if found.failed:
        print("the sweep's --subsets_file with such lines and --retry_failed tries again")
    lost = [item for item in gains.no_alone if (item,) in found.failed]
    if lost:
        raise InputError(f"'{lost[0]}' failed when trained alone, and without that score nobody knows what it gains; "
                         "the sweep's --retry_failed tries it again")
    missing = rounds.start_missing(gains, found.failed)
    if gains.no_alone:
        return finish(args, missing, f"without scores alone there are no gains: {', '.join(gains.no_alone)}")
    process = Process(gains.members, gains.values, args.seed)
    worth = Worth(gains, process, weights, {gains.mask(members).tobytes() for members in found.failed})
    everything, basis = rounds.read_rounds(file), rounds.basis(args, gains, found.metrics, weights)
    history = [each for each in everything if each.basis == basis]
    if args.target:
        following = target.rank(args, worth, history)
        why = "the best of all, but not measured" if following else "the best is measured"
        step = rounds.Step(partition(np.eye(len(gains.items), dtype=bool)), 0.0, following, why, kind="plan")
    else:
        step = rounds.next_step(worth, history, missing, found.failed, args.explore, args.budget, args.overlap,
                                args.seed)
        following, why = plan_all(args, step, worth, found)
    if args.write_subsets and step.next:
        write_whole(file, rounds.write_rounds([*everything, *rounds.record(history, step, basis)[len(history):]]))
    return finish(args, following, why, None if step.next else 1)  # 1: to confirm


if __name__ == "__main__":
    run_as_script(main)
