"""Imports run strictly downward: which module may import which (design, section 3)."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

FLOORS = (
    {"errors", "metrics", "names", "settings", "process"},
    {"tasks", "results", "args", "subsets", "ledger", "forkserver", "clustering", "plots"},
    {"data", "trainer", "affinity", "launchers", "sweep_args", "gradients"},
    {"catalogue", "experiment", "sweep", "cluster", "compare"},
    {"estimate"},  # an experiment on all items, compared with a sweep
    {"preload"},  # of nobody but the forkserver, which gets its name
)
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}  # the top floor
MODULES = {path.stem for path in (ROOT / "src").glob("*.py")} - {"__init__"}
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names} | dict.fromkeys(SCRIPTS, len(FLOORS))
# The trainer takes prepared data, run_as_script ties a process to its parent; within a floor nothing else is imported.
SIDEWAYS = {("trainer", "data"), ("errors", "process")}
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "evaluate"}


def imported(tree: ast.AST, inside_functions: bool) -> Iterator[str]:
    """Dotted names of what is imported, outside `if __name__ == "__main__"` and `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ("__name__" in ast.unparse(node.test) or "TYPE_CHECKING" in ast.unparse(
                node.test)):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: from src.tasks import ..."
            # `from src import metrics` imports the module src.metrics; other names are constants of the package.
            yield from ([f"src.{alias.name}" for alias in node.names if alias.name in MODULES]
                        if node.module == "src" else [node.module])
        else:
            yield from imported(node, inside_functions)


def imports(name: str, inside_functions: bool = True) -> list[str]:
    path = ROOT / f"{name}.py" if name in SCRIPTS else ROOT / "src" / f"{name}.py"
    return list(imported(ast.parse(path.read_text(encoding="utf-8")), inside_functions))


def test_every_module_has_its_floor():
    homeless = MODULES - set().union(*FLOORS)
    assert not homeless, f"new in src/: put {sorted(homeless)} on a floor, in this file and in the design"


def test_imports_run_downward():
    wrong = []
    for name in sorted(MODULES | SCRIPTS):
        for target in imports(name):
            package, _, module = target.partition(".")
            if package == "src":
                below = FLOOR[module.partition(".")[0]] < FLOOR[name] or (name, module) in SIDEWAYS
            else:
                below = package not in SCRIPTS  # scripts never import each other, and nobody imports a script
            if not below:
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_light_modules_import_nothing_heavy():
    """So that --help, dry runs, status and clustering start at once. Heavy imports may stand inside functions."""
    light = {name for name in MODULES if FLOOR[name] <= 1} - {"args"} | SCRIPTS | {"data", "catalogue"} & MODULES
    wrong = [f"{name} imports {target}" for name in sorted(light) for target in imports(name, inside_functions=False)
             if target.partition(".")[0] in HEAVY]
    assert not wrong


def test_this_test_sees_imports():
    """The exemptions are what they should be, and the rest is found."""
    source = """
import a
if TYPE_CHECKING:
    import b
try:
    from src import metrics
except ImportError:
    pass
class D:
    def e(self):
        from src.f import g
if __name__ == "__main__":
    import h
"""
    assert list(imported(ast.parse(source), True)) == ["a", "src.metrics", "src.f"]
    assert list(imported(ast.parse(source), False)) == ["a", "src.metrics"]
    assert {"src.tasks", "src.errors"} <= set(imports("data"))
