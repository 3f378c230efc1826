"""The page: its template filled with the facts and their pictures."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.cost import ahead, duration
from src.gains import amount
from src.metrics import LOWER_IS_BETTER
from src.plan.show import within
from src.report import pictures
from src.report.facts import FINDINGS, Facts, commands, settings


def number(value: float | None, how: str = ".4g") -> str:
    """A dash where there is none; with a true minus sign."""
    return "\N{EN DASH}" if value is None else format(value, how).replace("-", "\N{MINUS SIGN}")


def count(number: int, word: str, words: str = "") -> str:
    """`1 subset`, `2 subsets`."""
    return f"{number:,} {word if number == 1 else words or word + 's'}"


def listed(names: list[str], most: int = 6) -> str:
    """Names in a sentence, the first of many."""
    if len(names) <= most:
        return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def render(facts: Facts) -> str:
    """The page of what is known, as HTML."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"amount": amount, "number": number, "duration": duration, "count": count, "listed": listed,
                            "extract": lambda name, of: of.get(name, "")}
    plan, clusters = (facts.findings.get(name) for name in ("plan", "clusters"))
    plan = plan if plan and "rivals" in plan else None  # of an older version: to be made anew
    drawn = {pictures.kind_of(curve.trained_on, item, facts) for item in facts.curves for curve in facts.curves[item]}
    curves = {item: pictures.growth(item, facts, f"c{at}") for at, item in enumerate(facts.items) if facts.curves[item]}
    to_come = max(facts.sweep["to_come"] if facts.sweep else 0, len(plan["next"]) if plan else 0)
    return environment.get_template("page.html").render(
        facts=facts, plan=plan, clusters=clusters, within=within,
        gains=pictures.gains(plan) if plan else [], maps=pictures.heat_maps(clusters) if clusters else {},
        curves=curves, drawn=drawn, kinds=pictures.KINDS, lower=LOWER_IS_BETTER, commands=commands(facts),
        writers=FINDINGS, settings=settings(facts.first) if facts.first else {}, to_come=to_come,
        ahead=ahead(facts.cost, to_come) if to_come else "")
