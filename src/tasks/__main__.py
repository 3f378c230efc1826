"""`python -m src.tasks list | show TASK | check [TASK]`: the tasks, what a model would read, whether they are right."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from src import DEFAULT_CACHE_DIR, DEFAULT_DATA_DIR, DEFAULT_TASK_DIR
from src.cli import InputError, OneLineErrors, print_table, run_as_script
from src.tasks.catalogue import expand_names, load_task, task_names
from src.tasks.rows import Selection, find_rows, render_rows, source_hint
from src.tasks.task import GROUPS, SPLITS, Task
from src.tasks.template import LEFT_OUT, NO_INSTRUCTION, AlikeChoices, LeftOut, Template


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineErrors(prog="python -m src.tasks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | show | check")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument("--task_dir", default=DEFAULT_TASK_DIR, help="folder of the task files (default: %(default)s)")
        return sub

    listing = command("list", "Each task: group, templates, metric, sizes, where its rows would come from.")
    listing.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="folder of local rows (default: %(default)s)")
    show = command("show", "What a model would read and should write, on real rows.")
    show.add_argument("task", help="name of a task")
    show.add_argument("--template_idx", nargs="+", type=int, help="templates to show, -1 for the bare input (all)")
    show.add_argument("--rows", type=int, default=1, help="number of rows (default: %(default)s)")
    show.add_argument("--split", choices=SPLITS, default="train", help="split the rows are of (default: %(default)s)")
    show.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="folder of local rows (default: %(default)s)")
    show.add_argument("--cache_dir", default=DEFAULT_CACHE_DIR, help="folder for downloads (default: %(default)s)")
    show.add_argument("--model_name_or_path", help="show exactly what this model reads and is trained to write")
    show.add_argument("--ids", action="store_true", help="with a model: show token ids, too")
    show.add_argument("--chat_template", default="auto", help="as in training: auto, none, a file (default: auto)")
    show.add_argument("--system_prompt", help="as in training (default: what the chat template says by itself)")
    show.add_argument("--source_prefix", default="", help="as in training (default: nothing)")
    check = command("check", "Load task files; render every local row of each task under each of its templates.")
    check.add_argument("tasks", nargs="*", metavar="TASK", help="names of tasks (default: all)")
    check.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="folder of local rows (default: %(default)s)")
    args = parser.parse_args(arguments)
    return {"list": _list, "show": _show, "check": _check}[args.command](args)


def _list(args) -> int:
    rows, groups = [], set()
    for name in task_names(args.task_dir):
        task = load_task(name, args.task_dir)
        groups |= {task.group} - {None}
        sizes = ", ".join(f"{split} {size}" for split, size in task.rows.items())
        rows.append((name, "" if task.group is None else str(task.group), str(len(task.templates)), task.metrics[0],
                     ", from ".join(filter(None, (sizes, source_hint(task, args.data_dir))))))
    print_table(("task", "group", "templates", "main metric", "rows, and where they would come from"), rows,
                box=None, pad_edge=False)
    print("\ngroups: " + ", ".join(f"{group} {GROUPS[group]}" for group in sorted(groups)))
    return 0


def _show(args) -> int:
    task = load_task(expand_names([args.task], args.task_dir)[0], args.task_dir)
    indices = [*range(len(task.templates)), NO_INSTRUCTION] if args.template_idx is None else args.template_idx
    templates = [task.template(index) for index in indices]
    if args.rows < 1:
        raise InputError(f"--rows {args.rows} must be at least 1")
    family = None
    if not args.model_name_or_path:
        for flag, given in (("ids", args.ids), ("chat_template", args.chat_template != "auto"),
                            ("system_prompt", args.system_prompt is not None), ("source_prefix", args.source_prefix)):
            if given:
                raise InputError(f"--{flag} is about what a model reads: it needs --model_name_or_path")
    else:
        from src.training.flags import ModelArguments
        from src.training.model import load_family

        family = load_family(ModelArguments(args.model_name_or_path, chat_template=args.chat_template,
                                            system_prompt=args.system_prompt), args.cache_dir, args.source_prefix)
    rows = find_rows(task, args.split, args.data_dir, args.cache_dir)
    if rows is None:
        raise InputError(f"--split {args.split}: task '{task.name}' has no such split with labels")
    print(f"{task.name}: {task.description}\nrows from {rows.source}")
    for template in templates:
        template.check_columns(rows.load()[0], rows.source)
        for number, row in list(enumerate(rows.load(), 1))[:args.rows]:
            print(f"\n--- template {template.index} ({template.name}), row {number}")
            try:
                rendered = template.render(row)
            except LeftOut as error:
                print(f"left out: {error}")
                continue
            for kind, text in (("input", rendered.input), ("target", rendered.target)):
                if family is None:
                    print(f"{kind}: {text}")
                    continue
                ids = (family.prompts if kind == "input" else family.targets)([text])[0]
                print(f"{kind} [{len(ids)} tokens]: {family.tokenizer.decode(ids)}"
                      + (f"\n{kind} ids: {' '.join(map(str, ids))}" if args.ids else ""))
            if rendered.references != (rendered.target,):
                print(f"accepted: {' | '.join(rendered.references)}")
    return 0


def _check(args) -> int:
    failures, checked = [], 0
    for name in expand_names(args.tasks, args.task_dir) if args.tasks else task_names(args.task_dir):
        try:
            task = load_task(name, args.task_dir)
        except InputError as error:
            failures.append(str(error))
            continue
        failures += _alike(task)
        counts = []
        for split in _local_splits(task, args.data_dir):
            count, problems = _check_rows(task, split, args.data_dir)
            failures += problems
            counts.append(f"{count} {split} rows")
        checked += 1
        print(f"{name}: {len(task.templates)} templates" + (f", {', '.join(counts)}" if counts else ", no local rows"))
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"{checked} task{'s' * (checked != 1)} checked, {len(failures)} failures")
    return 1 if failures else 0


def _local_splits(task: Task, data_dir: str) -> list[str]:
    """Splits of the task that are in `data_dir` or in the task file: those that can be read without the hub."""
    folder = Path(data_dir) / task.name
    return [split for split in SPLITS if task.embedded is not None or any(folder.glob(f"{split}.*"))]


def _alike(task: Task) -> list[str]:
    """Templates of the task that render the same."""
    seen: dict[str, Template] = {}
    failures = []
    for template in (*task.templates, task.bare):
        text = " ".join(template.input.split())
        if text in seen:
            failures.append(f"task '{task.name}': templates {seen[text].index} and {template.index} are alike")
        seen[text] = template
    return failures


def _check_rows(task: Task, split: str, data_dir: str) -> tuple[int, list[str]]:
    """Render every row of one split under every template; return the number of rows and what is wrong."""
    failures = []
    try:
        rows = find_rows(task, split, data_dir, DEFAULT_CACHE_DIR)
        selection = Selection(task, split, rows, None, None, 0)
        numbered = selection.load()
    except InputError as error:
        return 0, [str(error)]
    for template in (*task.templates, task.bare):
        try:
            template.check_columns(numbered[0][1], rows.source)
            rendered, left_out = render_rows(selection, template, numbered)
        except InputError as error:
            failures.append(str(error))
            continue
        failures += _wrong_targets(template, rows.source, rendered, left_out, len(numbered), split)
    return len(numbered), failures


def _wrong_targets(template: Template, source: str, rendered: list, left_out: dict[str, int], rows: int,
                   split: str) -> Iterator[str]:
    where = f"{source}: task '{template.task}', template {template.index} ({template.name})"
    for counter, number in left_out.items():
        if counter != AlikeChoices.counter or number == rows:  # a few such rows are in good data sets, too
            yield f"{where}: {number} of {rows} rows are left out: {LEFT_OUT[counter]}"
    if isinstance(template.answer_choices, tuple) and template.answer_choices:
        targets = {row.target for row in rendered}
        for wrong in sorted(targets - set(template.answer_choices))[:3]:
            yield f"{where}: target '{wrong}' is none of the answer choices"
        if split == "train":
            for missing in sorted(set(template.answer_choices) - targets):
                yield f"{where}: answer choice '{missing}' is no row's target"


if __name__ == "__main__":
    run_as_script(main)
