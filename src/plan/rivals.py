"""What a plan is worth beside alone, all and clusters, by the scores that are to be reported, and whether it holds."""

import numpy as np

from src.plan import confirm, known, rounds, show
from src.plan.choose import Plan, Worth, partition
from src.plan.predict import Z90


def spread(worth: Worth, S: np.ndarray) -> np.ndarray:
    """Standard deviations (N, n) of the gains of subsets: of noise where measured, of the prediction else; 0 alone."""
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
    subsets, alone = plan.of_item, (plan.subsets.sum(1) == 1).all()
    way = "-" if alone else "bootstrap" if optimism else "spread over items"
    if found.report is not None:
        values = np.array([found.report.of(members)[i] for i, members in enumerate(subsets)])
        errors = np.array([found.report.errors[found.report.row[members.tobytes()], i]
                           if members.sum() > 1 and members.tobytes() in found.report.row else 0.0
                           for i, members in enumerate(subsets)])
        if not np.isnan(values).any():
            errors = np.where(np.isnan(errors), confirm.noise_sd(worth), errors)
            return show.Rival(name, plan, values, values - Z90 * errors, values + Z90 * errors, found.source,
                              confirm.interval(values, worth.weights, error=fresh_error(plan, values, worth, found)),
                              "fresh seed" if found.fresh and not alone else way)
    values, errors = worth.of_plan(plan), spread(worth, subsets).diagonal()
    source = sorted({how_known(worth, members) for members in plan.subsets})
    return show.Rival(name, plan, values, values - Z90 * errors, values + Z90 * errors,
                      " and ".join(source) + (", optimism subtracted" if optimism else ""),
                      confirm.interval(values, worth.weights, optimism), way)


def fresh_error(plan: Plan, values: np.ndarray, worth: Worth, found: known.Known) -> float | None:
    """Standard error of the mean of gains (n,) by a fresh seed; None for other scores, of the same trainings."""
    if not found.fresh:
        return None
    return confirm.fresh_error(values, worth.of_plan(plan), worth.weights, found.seeds)


def compare(plan: Plan, worth: Worth, found: known.Known, args) -> list[show.Rival]:
    """Alone, all, the clusters where there are any, and the plan, each with what it is worth."""
    gains = worth.gains
    rivals = {"alone": partition(np.eye(len(gains.items), dtype=bool)),
              "all": partition([np.ones(len(gains.items), bool)])}
    clusters = known.read_clusters(args, gains)
    if clusters is not None:
        rivals["clusters"] = partition(clusters)
    ours, optimism = rival("plan", plan, worth, found, None), None
    if ours.source != found.source and (plan.subsets.sum(1) > 1).any():
        optimism = confirm.optimism(worth, plan, args.budget, args.overlap, args.seed)
        ours = rival("plan", plan, worth, found, optimism)
    shown = [rival(name, each, worth, found, None) for name, each in rivals.items()]
    for other in shown:
        if other.source == ours.source or (optimism is not None and other.source != found.source):
            error = fresh_error(plan, ours.gains, worth, found) if other.name == "alone" and not optimism else None
            other.chance = confirm.chance(ours.gains - other.gains, worth.weights, optimism, error)
        if optimism is not None and {*map(bytes, other.plan.subsets)} == {*map(bytes, plan.subsets)}:
            other.source += "; the plan itself, optimism not subtracted"
    return [*shown, ours]


def confirmed(step: rounds.Step, worth: Worth, found: known.Known, args) -> tuple[Plan, list, str]:
    """The plan, or alone where the fresh seed shows no gain; what that seed lacks; what is to be said."""
    gains, plan = worth.gains, step.plan
    together = [members for members in plan.subsets if members.sum() > 1]
    lacking = [gains.names(members) for members in together if not found.report.is_measured(members)]
    alone = [(item,) for item in found.report.no_alone if any(members[gains.items.index(item)] for members in together)]
    failed = [" ".join(members) for members in (*alone, *lacking) if members in found.not_confirmed]
    if failed:
        return plan, [], (f"{step.why}; not confirmed, as trainings with seed {args.confirm_seed} failed: "
                          f"{', '.join(failed)}; the sweep's --retry_failed tries them again")
    if lacking or alone:
        return plan, [*alone, *lacking], f"to confirm the plan: train these with --seed {args.confirm_seed} --runs 1"
    own = rival("plan", plan, worth, found, None)
    if not together or own.total[0] > 0:
        return plan, [], step.why
    if args.budget is not None and args.budget < len(gains.items):
        return plan, [], f"{step.why}; by seed {args.confirm_seed} no better than alone, which the budget forbids"
    words = f"seed {args.confirm_seed} shows no gain ({show.amount(own.total[0], gains.unit)}), so the plan is alone"
    return partition(np.eye(len(gains.items), dtype=bool)), [], words  # not the best by the gains that chose
