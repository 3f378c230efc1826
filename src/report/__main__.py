"""The results of a name as one page, results/NAME/report.html, which loads nothing from elsewhere.

    python -m src.report --save_name NAME

It shows what is there: runs, the sweep, and what src.cluster and src.plan have found; also while a sweep is running.
"""

import argparse
from pathlib import Path

from src.cli import OneLineErrors, add_results_flags, run_as_script
from src.files import write_whole
from src.report.facts import gather
from src.report.page import render


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineErrors(prog="python -m src.report", description=__doc__)
    add_results_flags(parser, "save_name", "results_dir", "task_dir", "metric", metric={
        "help": "metric of the learning curves (default: the one of the clusters, or each task's own main metric)"})
    parser.add_argument("--task_set_name", help="the sweep: sampled_tasks/<task_set_name>/ (default: --save_name)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = make_parser().parse_args(arguments)
    page = render(gather(args))
    path = Path(args.results_dir) / args.save_name / "report.html"
    write_whole(path, page)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    run_as_script(main)
