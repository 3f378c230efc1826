"""What a sweep wants: its items, the subsets to be trained (its agenda), and what names, describes and trains each."""

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from src import DEFAULT_DATA_DIR
from src.cli import InputError, did_you_mean
from src.files import read_json, spelled_alike
from src.identity import short_hash
from src.results import Results
from src.subsets import Space, Subset, cluster_file, draw, read_clusters, read_subsets, start_set, subset
from src.sweep.checked import ask
from src.sweep.children import PRELOAD, ROOT
from src.sweep.ledger import Ledger
from src.tasks.catalogue import expand_names, load_task, task_names
from src.tasks.task import GROUPS


@dataclass(frozen=True)
class Items:
    """What a sweep samples from: its items, and how a child is told of them."""

    names: Subset
    flags: Callable[[Subset], list[str]]
    task: str | None = None  # of which a bare index in a cluster file names a template
    child: Mapping[str, list[str]] = field(default_factory=dict)  # more flags of every child
    preload: str = PRELOAD  # module whose import warms up the child's script


def task_items(args: argparse.Namespace) -> Items:
    """The tasks of --task_names or --target_task_group. Raises InputError where that names none, or too much."""
    if (args.target_task_group is None) == (args.task_names is None):
        raise InputError("give either --target_task_group or --task_names: what is to be sampled?")
    if args.task_names is not None:
        names = expand_names(args.task_names, args.task_dir)
    else:
        for group in args.target_task_group:
            if group not in range(len(GROUPS)):
                raise InputError(f"--target_task_group {group}: must be 0 to {len(GROUPS) - 1}")
        names = [name for name in task_names(args.task_dir)
                 if load_task(name, args.task_dir).group in args.target_task_group]
        if not names:
            raise InputError(f"--target_task_group: {Path(args.task_dir)} holds no task of these groups")
    try:
        indices = [-1 if index == "none" else int(index) for index in args.child.get("template_idx", ["0"])]
    except ValueError as error:
        raise InputError(f"--template_idx {' '.join(args.child['template_idx'])}: must be indices") from error
    for name in names:
        for index in indices:
            load_task(name, args.task_dir).template(index)
    return Items(subset(names), lambda members: ["--task_names", *members])


def instruction_items(args: argparse.Namespace) -> Items:
    """The first --num_tasks instructions of --dataset, trained with LoRA. Raises InputError for bad numbers."""
    task = load_task(args.dataset, args.task_dir)
    number = len(task.templates) if args.num_tasks is None else args.num_tasks
    if not 1 <= number <= len(task.templates):
        raise InputError(f"--num_tasks {number}: '{task.name}' has {len(task.templates)} instructions ({task.path})")
    if args.lora_rank < 0:
        raise InputError(f"--lora_rank {args.lora_rank} must be at least 0 (full fine-tuning)")
    lora = {"train_lora": ["True"], "lora_rank": [str(args.lora_rank)], "lora_alpha": [f"{args.lora_alpha:g}"]}

    def flags(members: Subset) -> list[str]:
        return ["--task_name", task.name, "--template_idx", *(member.rpartition("_")[2] for member in members)]

    return Items(subset(template.item for template in task.templates[:number]), flags, task.name,
                 lora if args.lora_rank else {})


class Agenda:
    """The subsets that a command wants, whether or not they are trained: that is known to the ledger alone.

    Args:
        args: of `flags.parse`.
        items: what is sampled.
        environment: of the children.
        folder: of the task set.

    Raises:
        InputError: bad input of the sweep's own, or what the training script refuses.
    """

    def __init__(self, args: argparse.Namespace, items: Items, environment: Mapping[str, str], folder: Path):
        self.args, self.items = args, items
        self.child = args.child | items.child
        self.results = Results(args.results_dir, args.save_name)
        names = items.names
        for name in args.child:
            if f"--{name}" in items.flags(names[:1]):
                raise InputError(f"--{name} is set by the sweep, to the items of each subset")
            if name in items.child:
                raise InputError(f"--{name} is set by the sweep: --lora_rank, --lora_alpha")
        clusters = () if args.current_cluster_dir == "none" else read_clusters(
            cluster_file("--current_cluster_dir", args.current_cluster_dir), names, items.task)
        targets = subset(f"{items.task}_{t}" if items.task and t.isdigit() else t for t in args.target_tasks)
        self.fixed: list[Subset] | None = None  # None: drawn
        if args.subsets_file or args.draw == "plan":
            self.fixed = read_subsets(args.subsets_file, names, items.task) if args.subsets_file else start_set(
                names, args.seed)
            sizes = [len(members) for members in self.fixed]
            self.space = Space(names, min(sizes), max(sizes))
        else:
            self.space = Space(names, args.min_task_num, args.max_task_num, targets, clusters)
        if args.from_estimate:
            self.fixed = _most_relevant(self.space, args)
        if args.preload_combos:
            start, end = args.combos_section or (0, None)
            self.fixed = list(islice(self.space.combinations(), start, end))
            if not self.fixed:
                raise InputError(f"--combos_section {start} {end}: there are {self.space.possible()} combinations")
        self.on_cpu = environment.get("CUDA_VISIBLE_DEVICES") == ""
        self.answer, self.kept = ask(self._command(names), environment, self._places(), folder, args.known)
        self._check_best_metric()
        self.settings = self.answer["settings"] | {"script": args.script, "seed": args.seed, "runs": args.runs,
                                                   "results": spelled_alike(self.results.folder)}
        self._held_out: dict[str, tuple] = self.answer.get("held_out", {})  # item -> content, metrics, of which item

    def _places(self) -> list[Path]:
        """The files and folders that decide what the children train, besides their flags."""
        tasks = [self.items.task] if self.items.task else list(self.items.names)
        if "eval_task_names" in self.child:
            tasks += expand_names(self.child["eval_task_names"], self.args.task_dir)
        data_dir = self.child.get("data_dir", [DEFAULT_DATA_DIR])[-1:]
        model = self.child.get("model_name_or_path", [""])[-1:]
        found = [Path(self.args.task_dir, f"{task}{suffix}") for task in tasks for suffix in (".yaml", ".json")]
        found += [Path(folder, task) for folder in data_dir for task in tasks]
        return [path for path in (*found, *map(Path, filter(None, model))) if path.exists()]

    def _check_best_metric(self) -> None:
        """The metric must be a mean that every subset has."""
        name = self.answer["settings"].get("metric_for_best_model")
        shared = set.intersection(*map(set, self.answer["metrics"].values()))
        if name and name.removeprefix("eval_") not in shared:
            raise InputError(f"--metric_for_best_model {name}: in a sweep it must be a mean that every subset has, "
                             f"{did_you_mean(name, [f'eval_{metric}' for metric in sorted(shared)])}")

    def subsets(self, ledger: Ledger, write: bool) -> list[Subset]:
        """The subsets wanted; where there are more than --num_samples, completed ones come first."""
        wanted = self.args.num_samples
        agenda = self._drawn(ledger, write) if self.fixed is None else self.fixed
        if wanted is not None and len(agenda) > wanted and not self.args.subsets_file:
            agenda = sorted(agenda, key=lambda members: not self.is_done(ledger, members))[:wanted]
        return agenda

    def _drawn(self, ledger: Ledger, write: bool) -> list[Subset]:
        """Those drawn so far, and as many new draws as --num_samples asks for.

        They are drawn once for all sweeps of the task set, so that those that run at the same time agree on them.
        """
        args = self.args
        while True:
            lines, draws = ledger.drawn()
            drawn = [subset(line.split()) for line in lines]
            agenda = [members for members in drawn if members in self.space]
            missing = None if args.num_samples is None else args.num_samples - len(agenda)
            new = draw(self.space, missing, args.seed, args.draw == "balanced", drawn)
            comment = f"{len(new)} subsets, --draw {args.draw} --seed {args.seed}"
            if not (new and write) or ledger.add_draw(draws, [" ".join(members) for members in new], comment):
                return agenda + new  # else another sweep has drawn meanwhile

    # ---- one subset ------------------------------------------------------------------------------------------------

    def key(self, members: Subset) -> str:
        """Name of a subset in the ledger: a hash of all that changes its result, and of what else is to be scored."""
        held_out = [(name, self._held_out[name][0]) for name in self.held_out(members)]
        return short_hash([self.run_key(members), held_out], 16) if held_out else self.run_key(members)

    def run_key(self, members: Subset) -> str:
        """Name of its runs: what is only scored changes nothing of them."""
        return short_hash([self.settings, [(item, self.answer["content"][item]) for item in members]], 16)

    def held_out(self, members: Subset) -> list[str]:
        """The items that are scored after training on the subset, without being in it."""
        return [name for name, (*_, of) in self._held_out.items() if name not in members and (not of or of in members)]

    def words(self, members: Subset) -> dict:
        """What the key hashes, for people."""
        held_out = self.held_out(members)
        return {"subset": " ".join(members), "settings": self.settings | ({"held_out": held_out} if held_out else {})}

    def run_ids(self, members: Subset) -> list[str]:
        return [f"{self.run_key(members)}-s{self.args.seed + run}" for run in range(self.args.runs)]

    def command(self, members: Subset) -> list[str]:
        """The child's command. Repeated, it keeps the runs that are completed and goes on from the last checkpoint."""
        return [*self._command(members), "--run_name", self.run_key(members)]

    def _command(self, members: Subset) -> list[str]:
        script = ROOT / self.args.script
        script = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
        ours = ("task_dir", "seed", "runs", "output_dir", "results_dir", "save_name")
        flags = self.child | {name: [str(getattr(self.args, name))] for name in ours} | (
            {"use_cpu": ["True"]} if self.on_cpu else {})
        return [sys.executable, str(script), *self.items.flags(members),
                *(word for name, values in flags.items() for word in (f"--{name}", *values))]

    def has_rows(self, members: Subset) -> bool:
        """Whether each run has rows of every split, item and metric that is asked for."""
        wanted = {(split, item, metric) for split in self.answer["splits"]
                  for item, metrics in self._scored(members) for metric in metrics}
        return all(self.results.is_completed(run_id, wanted) for run_id in self.run_ids(members))

    def _scored(self, members: Subset) -> list[tuple[str, list[str]]]:
        metrics = self.answer["metrics"] | {item: found[1] for item, found in self._held_out.items()}
        return [(item, metrics[item]) for item in (*members, *self.held_out(members))]

    def is_done(self, ledger: Ledger, members: Subset) -> bool:
        """Whether the ledger says so, and the rows are there: somebody may have deleted them, or ask for more now."""
        return ledger.is_done(self.key(members)) and self.has_rows(members)

    def delete_checkpoints(self, members: Subset) -> None:
        if not self.args.keep_checkpoints:
            for run_id in self.run_ids(members):
                shutil.rmtree(Path(self.args.output_dir) / run_id, ignore_errors=True)


def _most_relevant(space: Space, args: argparse.Namespace) -> list[Subset]:
    """The subsets of `space` that matter most by the estimates of --from_estimate, --num_samples of them."""
    from src.scores import loss_metrics, oriented, rank_subsets, read_scores  # numpy, which --help does not need

    folder = Path(args.results_dir) / args.from_estimate
    if not (folder / "runs.csv").exists():
        near = did_you_mean(folder.name, [path.name for path in folder.parent.glob("*/")])
        raise InputError(f"--from_estimate {args.from_estimate}: there is no {folder / 'runs.csv'}; {near}")
    if args.save_name == args.from_estimate:
        ways = {read_json(path).get("estimate", {}).get("chosen_by")
                for path in (folder / "runs").glob("estimate-s*.json")}
        if ways != {"calibration"}:
            raise InputError(
                f"--from_estimate {args.from_estimate}: these estimates were not calibrated on true trainings, so "
                "true scores cannot stand beside them; give another --save_name, and calibrate on what it holds")
    scores = read_scores(folder, statuses=("estimated",))
    estimates = oriented(scores, None, partial(loss_metrics, scores))
    ranked = rank_subsets(estimates, args.rank_by)
    found = [members for members in (subset(line.split()) for line in ranked) if members in space]
    if not found:
        raise InputError(f"--from_estimate {args.from_estimate}: {folder} estimates no subset of "
                         f"{space.smallest} to {space.largest} of {', '.join(space.items)}")
    return found[:args.num_samples]
