"""What to train next: what the plan lacks, then what may make a better one; and when it is enough.

`results/<save_name>/explored.txt` lists what was proposed, round by round: a heading with the gain of the plan at that
time and what it is a gain of, then a subset a line.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.gains import Gains
from src.plan.choose import OPTIMISM, Plan, Worth, choose
from src.subsets import Subset, start_set, subset

ENOUGH = 1e-3  # a plan better by less is not looked for
IN_VAIN = 2  # rounds of exploring that brought nothing, after which it ends
MOST_SPENT = 1.5  # subsets for each item that are proposed beyond the start set


@dataclass
class Round:
    """kind: plan, what the plan lacked; or explore. gain: of the plan at that time, and by what: `basis`."""

    kind: str
    gain: float
    subsets: list[Subset] = field(default_factory=list)
    basis: str = ""


def read_rounds(path: Path) -> list[Round]:
    rounds: list[Round] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        heading = re.match(r"# round \d+ \((plan|explore)\), gain (\S+)(?: by (.*))?$", line)
        if heading:
            rounds.append(Round(heading[1], float(heading[2]), basis=heading[3] or ""))
        elif rounds and line.strip():
            rounds[-1].subsets.append(subset(line.split()))
    return rounds


def write_rounds(rounds: list[Round]) -> str:
    return "".join(f"# round {number} ({each.kind}), gain {each.gain:.6g}{f' by {each.basis}' if each.basis else ''}\n"
                   + "".join(" ".join(members) + "\n" for members in each.subsets)
                   for number, each in enumerate(rounds, 1))


def given_up(sets: Path, results: Path) -> list[tuple[Subset, set[int]]]:
    """Subsets that sweeps into the folder `results` gave up, as more attempts failed than their --retries, and with
    which seeds: of the files <task_set_name>/failed/<key> below `sets`.

    Older files do not say their settings: they count as of the results of the task set's name, of any seed (an empty
    set), and without retries.
    """
    found = []
    for path in sorted(sets.glob("*/failed/*")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            settings = record.get("settings", {"results": results.with_name(path.parts[-3])})
            seeds = (settings["seed"], settings["seed"] + settings["runs"]) if "seed" in settings else (0,)
            if Path(settings["results"]).resolve() == results.resolve() and len(record["attempts"]) > record.get(
                    "retries", 0):
                found.append((subset(record["subset"].split()), set(range(*seeds))))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):  # damaged: the sweep says so
            continue
    return found


def start_missing(gains: Gains, failed: set[Subset]) -> list[Subset]:
    """What every plan is compared with and no score is there of: items alone, then all."""
    missing = [(item,) for item in gains.no_alone]
    if len(gains.items) > 1 and not gains.is_measured(np.ones(len(gains.items), bool)):
        missing.append(subset(gains.items))
    return [members for members in missing if members not in failed]


@dataclass
class Step:
    """The plan as it is now, what to train next (nothing: settled), and why, in words."""

    plan: Plan
    gain: float
    next: list[Subset]
    why: str
    kind: str = ""


def next_step(worth: Worth, rounds: list[Round], missing: list[Subset], failed: set[Subset], explore: int,
              budget: int | None, overlap: bool, seed: int) -> Step:
    """The best plan, and what to train next for it: what it lacks, or else `explore` subsets that may beat it."""
    gains, n = worth.gains, len(worth.gains.items)
    share = worth.weights.sum()

    def gain_of(plan: Plan, optimistic: bool = False) -> float:
        values = worth.of_plan(plan) @ worth.weights
        if optimistic:  # as the choice counts: a bonus for each subset
            serves = plan.served == np.arange(len(plan.subsets))[:, None]
            bonus = OPTIMISM * worth.deviations(plan.subsets) * worth.weights
            values += np.sqrt((np.where(serves, bonus, 0.0) ** 2).sum(1)).sum()
        return float(values / share)

    def lacks(plan: Plan) -> list[np.ndarray]:
        return [members for members in plan.subsets if members.sum() > 1 and not gains.is_measured(members)]

    spent = count_spent(rounds, gains.items, seed)
    enough = spent >= MOST_SPENT * n
    plan = choose(worth, budget, overlap, pool=worth.measured() if enough else None, seed=seed)
    gain, own = gain_of(plan), [gains.names(members) for members in lacks(plan)]
    if missing or own:
        why = "without these nothing can be compared" if missing else "in the plan, but not measured"
        return Step(plan, gain, [*missing, *(members for members in own if members not in missing)], why, "plan")
    explored = [each for each in rounds if each.kind == "explore"]
    if explore == 0:
        return Step(plan, gain, [], "the plan is measured")
    if enough:
        return Step(plan, gain, [], f"the plan is measured, and {spent} subsets were tried for it")
    waiting = [members for each in explored[-1:] for members in each.subsets
               if members not in failed and not gains.is_measured(gains.mask(members))]
    if waiting:
        return Step(plan, gain, waiting, "proposed before, not measured yet", "explore")
    if len(explored) >= IN_VAIN and gain < explored[-IN_VAIN].gain + ENOUGH:
        return Step(plan, gain, [], f"the plan is measured, and {IN_VAIN} rounds of exploring brought nothing")
    hoped = choose(worth, budget, overlap, optimistic=True, seed=seed, start=plan)
    if gain_of(hoped, optimistic=True) < gain + ENOUGH or not lacks(hoped):
        return Step(plan, gain, [], "the plan is measured, and no other is likely to beat it")
    open_sets = np.array(lacks(hoped))
    order = np.argsort(-worth.totals(open_sets, optimistic=True), kind="stable")[:explore]
    return Step(plan, gain, [gains.names(open_sets[s]) for s in order], "may make a better plan", "explore")


def count_spent(rounds: list[Round], items: tuple[str, ...], seed: int) -> int:
    """How many subsets beyond the start set were proposed."""
    return len({members for each in rounds for members in each.subsets} - set(start_set(items, seed)))


def basis(args, gains: Gains, metrics: list[str], weights: np.ndarray) -> str:
    """What gains of plans are of, in words: those of another basis are not compared with them."""
    flags = [(name, getattr(args, name)) for name in ("config_hash", "target", "budget", "overlap")]
    return ", ".join([*metrics, gains.unit, args.split, *(f"{name} {value}" for name, value in flags if value), *(
        f"{item} {weight:g}" for item, weight in zip(gains.items, weights, strict=True) if weight != 1)])


def record(rounds: list[Round], step: Step, basis: str = "") -> list[Round]:
    """The rounds with what is proposed now, where that is new."""
    known = {members for each in rounds for members in each.subsets}
    new = [members for members in step.next if members not in known]
    return [*rounds, Round(step.kind, step.gain, new, basis)] if new and step.kind else rounds
