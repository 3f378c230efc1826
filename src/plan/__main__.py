"""From results to a plan: which subsets to train, so that each item is served as well as possible by one of them.

    python -m src.plan --save_name NAME                            the plan by what is trained so far
    python -m src.plan --save_name NAME --write_subsets next.txt   ... and what to train next (exit code 3; 0: settled)
    python -m src.plan --save_name NAME --confirm_seed 43          ... reported by a seed that had no part in the choice
    python -m src.plan --save_name NAME --target rte               which sources and subsets are best for one item
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np

from src.cli import InputError, OneLineErrors, add_results_flags, check_effects, did_you_mean, run_as_script
from src.files import write_whole
from src.gains import UNITS
from src.plan import confirm, known, rounds, show
from src.plan.choose import MOST_EXACT, Plan, Worth, every_subset, partition
from src.plan.predict import Z90, Process

UNIT_IN_WORDS = {"relative": "relative to the score alone", "points": "in points of the metric", "gain": "as given"}
LEFT = 3  # exit code: something is left to be trained


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineErrors(prog="python -m src.plan", description=__doc__)
    add = parser.add_argument
    add_results_flags(parser, "save_name", "results_dir", "task_dir", "config_hash", "content_hash")
    add("--task_set_name", help="name of the sweep's subsets below sampled_tasks/, for those that failed "
        "(default: --save_name)")
    add("--split", default="valid", choices=["valid", "test"], help="scores to choose by (default: valid; those of the "
        "test split, where there are any, are then reported)")
    add("--metric", nargs="+", metavar="METRIC", help="metric of all items, or ITEM=METRIC for some (default: each "
        "task's own main metric)")
    add("--lower_is_better", nargs="+", default=[], metavar="METRIC", help="metrics of your own that are losses")
    add("--higher_is_better", nargs="+", default=[], metavar="METRIC", help="metrics of your own that are scores")
    add("--unit", choices=UNITS, help="of gains: relative to the score alone, points, or gain: as it is (default: "
        "relative where all have losses, points where all have scores)")
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
    add("--clusters_dir", default="clusters", help="folder of cluster files; <save_name>.txt is compared with, "
        "<save_name>_plan.txt written (default: clusters)")
    add("--seed", type=int, default=0, help="of resamples and of the search beyond 16 items (default: 0)")
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    args = make_parser().parse_args(arguments)
    if args.target:
        check_effects("--target", ("--budget", "--overlap", "--explore", "--confirm_seed"),
                      sys.argv[1:] if arguments is None else arguments)
    if args.budget is not None and args.budget < 1:
        raise InputError(f"--budget {args.budget}: cannot serve all items; must be at least 1")
    if args.explore < 0:
        raise InputError(f"--explore {args.explore}: must be 0 or more")
    if args.write_subsets and not Path(args.write_subsets).parent.is_dir():
        raise InputError(f"--write_subsets {args.write_subsets}: there is no folder {Path(args.write_subsets).parent}")
    return args


# ---- what it is worth -----------------------------------------------------------------------------------------------


def spread(worth: Worth, S: np.ndarray) -> np.ndarray:
    """Standard deviations (N, n) of the gains of sets: of noise where measured, of the prediction else; 0 alone."""
    deviations, noise = worth.deviations(S), confirm.noise_sd(worth)
    for s, members in enumerate(S):
        if worth.gains.is_measured(members):
            errors = worth.gains.errors[worth.gains.row[members.tobytes()]]
            deviations[s] = np.where(np.isnan(errors), noise, errors)
    deviations[S.sum(1) == 1] = 0.0
    return deviations


def how_known(worth: Worth, members: np.ndarray) -> str:
    row = worth.gains.row.get(members.tobytes())
    if members.sum() == 1 or worth.gains.is_measured(members):
        return "measured"
    return "estimated" if row is not None and worth.gains.estimated[row] else "predicted"


def rival(name: str, plan: Plan, worth: Worth, found: known.Known, optimism: confirm.Optimism | None) -> show.Rival:
    """What a plan is worth: by the scores to report where they are whole, by those that choose else."""
    own = np.arange(len(worth.weights))
    sets = plan.of_item
    if found.report is not None:
        values = np.array([found.report.of(members)[i] for i, members in enumerate(sets)])
        errors = np.array([found.report.errors[found.report.row[members.tobytes()], i]
                           if members.sum() > 1 and members.tobytes() in found.report.row else 0.0
                           for i, members in enumerate(sets)])
        if not np.isnan(values).any():
            errors = np.where(np.isnan(errors), confirm.noise_sd(worth), errors)
            return show.Rival(name, plan, values, values - Z90 * errors, values + Z90 * errors, found.source,
                              confirm.interval(values, worth.weights, error=fresh_error(plan, values, worth, found)))
    values, errors = worth.of_items(sets)[own, own], spread(worth, sets)[own, own]
    source = sorted({how_known(worth, members) for members in plan.subsets})
    return show.Rival(name, plan, values, values - Z90 * errors, values + Z90 * errors,
                      " and ".join(source) + (", optimism subtracted" if optimism else ""),
                      confirm.interval(values, worth.weights, optimism))


def fresh_error(plan: Plan, values: np.ndarray, worth: Worth, found: known.Known) -> float | None:
    """Standard error of the mean of gains (n,) by a fresh seed; None for other scores, of the same trainings."""
    if not found.fresh:
        return None
    own = np.arange(len(values))
    return confirm.fresh_error(values, worth.of_items(plan.of_item)[own, own], worth.weights, found.seeds)


def compare(plan: Plan, worth: Worth, found: known.Known, args) -> list[show.Rival]:
    """Alone, all, the clusters where there are any, and the plan, each with what it is worth."""
    gains = worth.gains
    rivals = {"alone": partition(np.eye(len(gains.items), dtype=bool)),
              "all": partition([np.ones(len(gains.items), bool)])}
    clusters = known.read_clusters(Path(args.clusters_dir) / f"{args.save_name}.txt", gains)
    if clusters is not None:
        rivals["clusters"] = partition(clusters)
    ours, optimism = rival("plan", plan, worth, found, None), None
    if ours.source != found.source and (plan.subsets.sum(1) > 1).any():
        optimism = confirm.optimism(worth, plan, args.budget, args.overlap, args.seed)
        ours = rival("plan", plan, worth, found, optimism)
    shown = [rival(name, each, worth, found, None) for name, each in rivals.items()]
    for other in shown:
        if optimism is not None or other.source == ours.source:
            error = fresh_error(plan, ours.gains, worth, found) if other.name == "alone" and not optimism else None
            other.chance = confirm.chance(ours.gains - other.gains, worth.weights, optimism, error)
    return [*shown, ours]


def confirmed(step: rounds.Step, worth: Worth, found: known.Known, args) -> tuple[Plan, list, str]:
    """The plan, or alone where the fresh seed shows no gain; what that seed lacks; what is to be said."""
    gains, plan = worth.gains, step.plan
    together = [members for members in plan.subsets if members.sum() > 1]
    lacking = [gains.names(members) for members in together if not found.report.is_measured(members)]
    alone = [(item,) for item in found.report.no_alone if any(members[gains.items.index(item)] for members in together)]
    if lacking or alone:
        return plan, [*alone, *lacking], f"to confirm the plan: train these with --seed {args.confirm_seed} --runs 1"
    own = rival("plan", plan, worth, found, None)
    if not together or own.total[0] > 0:
        return plan, [], step.why
    if args.budget is not None and args.budget < len(gains.items):
        return plan, [], f"{step.why}; by seed {args.confirm_seed} no better than alone, which the budget forbids"
    words = f"seed {args.confirm_seed} shows no gain ({show.amount(own.total[0], gains.unit)}), so the plan is alone"
    return partition(np.eye(len(gains.items), dtype=bool), exact=plan.exact), [], words


# ---- one target -----------------------------------------------------------------------------------------------------


def target(args, worth: Worth, found: known.Known, history: list[rounds.Round], say) -> list:
    """Print sources and subsets ranked for one item; return what should be trained next."""
    gains, n = worth.gains, len(worth.gains.items)
    if args.target not in gains.items:
        raise InputError(f"--target {args.target}: not in these results, {did_you_mean(args.target, gains.items)}")
    at = gains.items.index(args.target)
    pairs = np.eye(n, dtype=bool) | (np.arange(n) == at)
    sets = every_subset(n) if n <= MOST_EXACT else np.unique(np.concatenate([gains.members, pairs]), axis=0)
    for _ in range(n if n > MOST_EXACT else 0):  # neighbours of the best so far
        best = sets[np.nanargmax(np.where(sets[:, at], worth.of_items(sets)[:, at], -np.inf))]
        more = np.unique(np.concatenate([sets, best ^ np.eye(n, dtype=bool)]), axis=0)
        if len(more) == len(sets):
            break
        sets = more
    sets = sets[sets[:, at]]
    sets = sets[worth.allowed(sets)]
    values = worth.of_items(sets)[:, at]
    order = np.argsort(-values, kind="stable")
    for title, rows in (("source", [s for s in order if sets[s].sum() == 2]), ("subset", list(order))):
        rows = rows[:show.MOST_RANKED]
        width = Z90 * spread(worth, sets[rows])[:, at]
        say.table(show.target_table(args.target, [
            (" ".join(item for item in gains.names(sets[s]) if title == "subset" or item != args.target), values[s],
             values[s] - w, values[s] + w, how_known(worth, sets[s])) for s, w in zip(rows, width, strict=True)],
            gains.unit, title))
    best, spent = sets[order[0]], rounds.count_spent(history, gains.items, args.seed)
    measured = how_known(worth, best) == "measured" or spent >= rounds.MOST_SPENT * n
    return [] if measured else [gains.names(best)]


# ---- the command ----------------------------------------------------------------------------------------------------


class Say:
    """Lines and tables on standard output."""

    def __init__(self):
        from rich.console import Console

        self.console = Console()
        self.line = partial(self.console.print, highlight=False, soft_wrap=True, markup=False)
        self.table = self.console.print


def finish(args, following: list, why: str, say: Say) -> int:
    """Name and write what should be trained next; the exit code."""
    if not following:
        say.line(f"settled: {why}")
        return 0
    following = sorted(following, key=len)
    say.line(f"to be trained next, {len(following)} ({why}):")
    for members in following:
        say.line("  " + " ".join(members))
    if args.write_subsets:
        write_whole(Path(args.write_subsets), "".join(" ".join(members) + "\n" for members in following))
        say.line(f"written: {args.write_subsets}")
    return LEFT


def write(args, ours: show.Rival, rivals: list[show.Rival], worth: Worth, settled: bool) -> list[Path]:
    """plan.json, plan.png and, of a partition, its cluster file; their paths."""
    gains, folder = worth.gains, Path(args.results_dir) / args.save_name
    write_whole(folder / "plan.json", json.dumps(show.as_json(ours, gains, settled, worth.process), indent=1) + "\n")
    show.draw(folder / "plan.png", rivals, gains)
    clusters = Path(args.clusters_dir) / f"{args.save_name}_plan.txt"
    if (ours.plan.subsets.sum(0) == 1).all():
        clusters.parent.mkdir(parents=True, exist_ok=True)
        write_whole(clusters, "".join(" ".join(gains.names(members)) + "\n" for members in ours.plan.subsets))
        return [folder / "plan.json", folder / "plan.png", clusters]
    clusters.unlink(missing_ok=True)  # of an earlier plan
    return [folder / "plan.json", folder / "plan.png"]


def print_plan(args, ours: show.Rival, rivals: list[show.Rival], worth: Worth, say: Say) -> None:
    gains = worth.gains
    keys = {members.tobytes(): " ".join(sorted(gains.names(members))) for members in ours.plan.subsets}
    ran = known.passes(Path(args.results_dir) / args.save_name, set(keys.values()))
    passes = {item: ran.get(keys[ours.plan.of_item[i].tobytes()], {}).get(item) for i, item in enumerate(gains.items)}
    say.table(show.plan_table(ours, gains, [how_known(worth, members) for members in ours.plan.of_item],
                              {item: times for item, times in passes.items() if times is not None}))
    say.table(show.rivals_table(rivals, gains.unit))
    losses = show.losses_table(gains)
    if losses is not None:
        say.table(losses)
    say.line(show.predictor_line(worth.process, gains.unit))
    say.line("no plan is worth more by these gains (exact)" if ours.plan.exact else
             "found by local search: how far the best plan is from it is not known")


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    found, say = known.read(args), Say()
    gains, file = found.gains, Path(args.results_dir) / args.save_name / "explored.txt"
    weights = known.read_weights(args.weights, gains.items)
    say.line(f"{len(gains.items)} items, {len(gains.members)} subsets with scores, metric {', '.join(found.metrics)}, "
             f"gains {UNIT_IN_WORDS[gains.unit]}")
    for members in sorted(found.failed, key=lambda members: (len(members), members)):
        say.line(f"not proposed, its training failed: {' '.join(members)}")
    lost = [item for item in gains.no_alone if (item,) in found.failed]
    if lost:
        raise InputError(f"'{lost[0]}' failed when trained alone, and without that score nobody knows what it gains; "
                         "the sweep's --retry_failed tries it again")
    missing = rounds.start_missing(gains, found.failed)
    if gains.no_alone:
        return finish(args, missing, f"without scores alone there are no gains: {', '.join(gains.no_alone)}", say)
    process = Process(gains.members, gains.values, args.seed)
    worth = Worth(gains, process, weights, {gains.mask(members).tobytes() for members in found.failed})
    history = rounds.read_rounds(file)
    if args.target:
        following = target(args, worth, found, history, say)
        step = rounds.Step(partition(np.eye(len(gains.items), dtype=bool)), 0.0, following, "the best is measured"
                           if not following else "the best of all, but not measured", kind="plan")
    else:
        step = rounds.next_step(worth, history, missing, found.failed, args.explore, args.budget, args.overlap,
                                args.seed)
    plan, following, why = step.plan, step.next, step.why
    if not args.target:
        if not following and args.confirm_seed is not None:
            plan, following, why = confirmed(step, worth, found, args)
        rivals = compare(plan, worth, found, args)
        print_plan(args, rivals[-1], rivals, worth, say)
        say.line("written: " + ", ".join(map(str, write(args, rivals[-1], rivals, worth, not following))))
    if args.write_subsets and step.next:
        write_whole(file, rounds.write_rounds(rounds.record(history, step)))
    return finish(args, following, why, say)


if __name__ == "__main__":
    run_as_script(main)
