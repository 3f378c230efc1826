"""The flags of the two sampling scripts, once, and how the children's flags pass through them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from src.cli import InputError, OneLineErrors, add_results_flags, check_effects, did_you_mean, folder
from src.files import with_file
from src.names import check_name
from src.old_flags import SHORT, translate_old_flags
from src.sweep.ledger import MODES

# What a child is told unless the command line says otherwise.
CHILD_DEFAULTS = {
    "do_train": ["True"], "do_eval": ["True"], "predict_with_generate": ["True"], "eval_strategy": ["steps"],
    "save_strategy": ["steps"], "lr_scheduler_type": ["constant"], "load_best_model_at_end": ["True"],
    "metric_for_best_model": ["eval_exact_match"], "greater_is_better": ["True"], "disable_tqdm": ["True"],
}
# Children's flags that the sweep sets itself: what to use instead.
OURS = {"run_name": "the key of the subset", "use_cpu": "--device cpu"}


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be True or False, found '{text}'")
    return text.lower() == "true"


AT_ONCE = 10_000  # children on a device, workers
SWITCH = {"nargs": "?", "const": True, "default": False, "type": boolean}
# What says which subsets or workers there are, and the flags that would have no effect beside it.
NO_EFFECT = {
    "--subsets_file": ("--target_tasks", "--min_task_num", "--max_task_num", "--num_samples", "--draw",
                       "--current_cluster_dir"),
    "--draw plan": ("--target_tasks", "--min_task_num", "--max_task_num", "--num_samples", "--current_cluster_dir"),
    "--preload_combos": ("--num_samples", "--draw"),
    "--from_estimate": ("--draw",),
    "--launcher local": ("--workers", "--partition", "--gres", "--time", "--requeue"),
    "--launcher ray": ("--partition", "--gres", "--time", "--requeue"),
}


def sweep_parser(description: str, script: str) -> argparse.ArgumentParser:
    """A parser of all flags that both scripts share; `script` is the training script that the children run."""
    defaults = " ".join(f"--{name} {' '.join(values)}" for name, values in CHILD_DEFAULTS.items())
    parser = OneLineErrors(
        description=description,
        epilog=f"Every other flag is passed on to {script}, by name or after --; see its --help.\n"
               "So are --lr (its --learning_rate) and --batch_size (its --per_device_train_batch_size).\n"
               f"Passed on by default: {defaults}")
    parser.set_defaults(script=script)
    for title, add_flags in (("which subsets", _which_subsets), ("names and places", _names_and_places),
                             ("how they are run", _how_they_are_run), ("many machines", _many_machines)):
        add_flags(parser.add_argument_group(title))
    return parser


def _which_subsets(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--num_samples", type=int, help="distinct completed subsets wanted, those of earlier sweeps included (with "
        "--draw balanced: by default until all pairs are seen twice)")
    add("--min_task_num", type=int, default=2, help="smallest subset")
    add("--max_task_num", type=int, help="largest subset (default: --min_task_num)")
    add("--draw", choices=["uniform", "balanced", "plan"], default="uniform", help="uniform over sizes and members; "
        "balanced: covers all pairs soonest, then evenly; plan: what a plan starts from (each item alone, all, all but "
        "one; all pairs, of more than 8 items random halves in their place)")
    add("--target_tasks", nargs="+", default=[], metavar="ITEM", help="each subset holds at least one of these")
    add("--current_cluster_dir", default="none", help="clusters found so far, a file or a name in clusters/: each draw "
        "takes one cluster, and samples from its members and all items not yet placed")
    add("--preload_combos", **SWITCH, help="train all combinations in order instead of drawing")
    add("--combos_section", type=int, nargs=2, metavar=("S", "T"),
        help="with --preload_combos: from the S-th, counted from 0, to before the T-th")
    add("--subsets_file", type=Path, help="train exactly the subsets of this file, a line each, instead of drawing")
    add("--from_estimate", metavar="NAME", help="train the --num_samples subsets that matter most by the estimates in "
        "results/NAME/ (python -m src.estimate), and put them there (unless --save_name): true scores go before "
        "estimated ones")
    add("--rank_by", choices=["value", "uncertainty"], default="value", help="with --from_estimate: those of the "
        "smallest estimated loss, each item measured against its own mean, or those whose estimates differ most "
        "between seeds")
    add("--seed", type=int, default=42, help="of the draws, and of each subset's first run")


def _names_and_places(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--task_set_name", required=True, help="sampled_tasks/<task_set_name>.txt lists the completed subsets")
    add_results_flags(group, "save_name", "results_dir", "task_dir", task_dir={"help": "folder of the task files"},
                      save_name={"required": False, "help": "results/<save_name>/ holds the results (default: "
                                 "--task_set_name, or that of --from_estimate)"})
    add("--output_dir", type=folder, default="saved/", help="folder of the checkpoints")
    add("--runs", type=int, default=1, help="runs of each subset, with seeds --seed, --seed + 1, ...")


def _how_they_are_run(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--device", nargs="+", default=["0"], help="indices of GPUs, one child each; all; or cpu")
    add("--jobs_per_device", type=int, default=1, help="children at once on each device")
    add("--retries", type=int, default=1, help="times that a failed subset is tried again")
    add("--retry_failed", **SWITCH, help="forget the failures of earlier sweeps and try those subsets again")
    add("--subset_timeout", type=float, help="seconds after which a child is ended as failed (default: none)")
    add("--keep_checkpoints", **SWITCH, help="keep the checkpoints of completed subsets")
    add("--warm_start", **SWITCH | {"default": None}, help="fork the children from a process that has imported the "
        "libraries, which saves seconds each (default: True on the CPU, False on GPUs)")
    add("--ledger", choices=MODES, help="how subsets are claimed: flock, between processes of one machine, or "
        "heartbeat, between machines (default: as the task set was begun, else flock; with --launcher slurm or ray, "
        "heartbeat)")
    add("--dry_run", **SWITCH, help="print the subsets, what they cover, and the children's commands; run nothing")
    add("--status", **SWITCH, help="print the state of the sweep; run nothing")


def _many_machines(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--launcher", choices=["local", "slurm", "ray"], default="local",
        help="run here, submit an array of SLURM jobs, or run on the Ray cluster at RAY_ADDRESS")
    add("--workers", type=int, default=1, help="number of workers on SLURM or Ray")
    add("--partition", help="SLURM partition of the workers")
    add("--gres", help="SLURM resources of each worker, for example gpu:1")
    add("--time", help="SLURM time limit of each worker, for example 4:00:00")
    add("--requeue", **SWITCH | {"default": True},
        help="queue a SLURM worker again when its time ends or it is preempted")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check; the children's flags come as `child`, name -> values; `command_line` is what was parsed.

    Raises InputError for a value that is not allowed, SystemExit(2) for one of the wrong type.
    """
    arguments = translate_old_flags(with_file(sys.argv[1:] if arguments is None else arguments))
    split = arguments.index("--") if "--" in arguments else len(arguments)
    args, unknown = parser.parse_known_args(arguments[:split])
    args.command_line = arguments
    args.known = [option for option in parser._option_string_actions if option.startswith("--")]
    for token in arguments[split + 1:]:
        if token.partition("=")[0] in args.known:
            raise InputError(f"{token.partition('=')[0]} is a flag of the sweep: it must stand before --")
    args.child = CHILD_DEFAULTS | _child_flags(unknown + arguments[split + 1:], args.known)
    args.max_task_num = args.min_task_num if args.max_task_num is None else args.max_task_num
    args.save_name = args.save_name or args.from_estimate or args.task_set_name
    for name in ("task_set_name", "save_name"):
        check_name(f"--{name}", getattr(args, name))
    for name, least in (("num_samples", 1), ("seed", 0), ("runs", 1), ("jobs_per_device", 1), ("retries", 0),
                        ("workers", 1), ("subset_timeout", 1)):
        value = getattr(args, name)
        if value is not None and not least <= value < float("inf"):  # nor NaN
            raise InputError(f"--{name} {value} must be at least {least}")
        if name in ("jobs_per_device", "workers") and value > AT_ONCE:  # there is a list of them, as long as that
            raise InputError(f"--{name} {value} must be at most {AT_ONCE}")
    for name in ("partition", "gres", "time"):  # lines of a script: a line break would begin an option, or a command
        value = getattr(args, name)
        if value is not None and (not value.isprintable() or len(value.split()) != 1):
            raise InputError(f"--{name} {value!r} must be one word")
    if args.combos_section and not args.preload_combos:
        raise InputError("--combos_section needs --preload_combos")
    if args.combos_section and not 0 <= args.combos_section[0] < args.combos_section[1]:
        raise InputError(f"--combos_section {' '.join(map(str, args.combos_section))}: must be S and T, 0 <= S < T")
    ways = [f"--{name}" for name in ("preload_combos", "subsets_file", "from_estimate") if getattr(args, name)]
    ways += ["--draw plan"] if args.draw == "plan" else []
    if len(ways) > 1:
        raise InputError(f"{ways[0]} and {ways[1]} exclude each other")
    for way in (*ways, f"--launcher {args.launcher}"):
        check_effects(way, NO_EFFECT.get(way, ()), arguments[:split])
    if not args.from_estimate:
        check_effects("draws without --from_estimate", ["--rank_by"], arguments[:split])
    if args.launcher != "local" and args.device not in (["cpu"], ["all"], parser.get_default("device")):
        raise InputError(f"--device {' '.join(args.device)}: with --launcher {args.launcher} a worker takes all GPUs "
                         "that it is given; leave it out, or give cpu")
    if args.from_estimate and not args.num_samples:
        raise InputError("--from_estimate: --num_samples is missing: how many subsets are to be trained?")
    if not (args.num_samples or ways or args.draw == "balanced"):
        raise InputError("--num_samples is missing: how many subsets are wanted? (--draw plan needs no number)")
    return args


def _child_flags(tokens: list[str], known: list[str]) -> dict[str, list[str]]:
    """Group `--flag value value` by flag, under today's spelling; the last of a repeated flag counts."""
    flags: dict[str, list[str]] = {}
    name = None
    for token in tokens:
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            name = SHORT.get(name, name)
            if name in OURS:
                raise InputError(f"--{name} is set by the sweep: {OURS[name]}")
            flags[name] = [value] if equals else []
        elif name is None:
            raise InputError(f"'{token}' belongs to no flag; {did_you_mean(token, known, shown=0)}".rstrip("; "))
        else:
            flags[name].append(token)
    return flags
