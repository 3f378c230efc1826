"""The architecture holds: floors, no circles, light commands, sizes, attributes; src/README.md shows it on a page."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room's __main__ is a command: it may use every room (`src.tasks show` a model's tokenizer), and nothing imports it.
FLOORS = (("ground",), ("tasks",), ("training", "cluster"), ("plan", "sweep", "estimate"), ("report",),
          ("commands", "scripts"))
TOP = FLOORS[-1]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
         for path in [*ROOT.glob("*.py"), *(ROOT / "src").rglob("*.py")]}
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "evaluate"}
OF_TRANSFORMERS = {"control", "state", "compute_metrics", "gather_function"}  # attributes that its Trainer has by then
# Read by its name by the forkserver alone, to warm up the training scripts: no module imports it.
PRELOAD = "src.sweep.preload"


def room(module: str) -> str:
    """The room of a module, `ground` for those of src/ itself, `commands` for every __main__."""
    parts = module.split(".")
    if parts[-1] == "__main__":
        return "commands"
    return "scripts" if parts[0] != "src" else parts[1] if len(parts) > 2 else (
        parts[1] if (ROOT / "src" / parts[-1]).is_dir() else "ground")


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of what is imported, anywhere in the file; `from package import module` counts as the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: from src.tasks import ..."
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else node.module


def imports(module: str) -> list[str]:
    """Modules of the project that `module` imports, packages without code aside."""
    found = imported(ast.parse(FILES[module].read_text(encoding="utf-8")))
    return [name for name in found if name in FILES and name != "src"]


def test_imports_run_downward():
    wrong = []
    for module in FILES:
        for target in imports(module):
            here, there = FLOOR[room(module)], FLOOR[room(target)]
            if there > here or (there == here and room(target) != room(module)) or room(target) in TOP:
                wrong.append(f"{module} imports {target}")
    assert not wrong


def test_no_circles():
    graphlib.TopologicalSorter({module: imports(module) for module in FILES}).prepare()  # raises CycleError
    rooms: dict[str, set[str]] = {}
    for module in FILES:
        rooms.setdefault(room(module), set()).update({room(name) for name in imports(module)} - {room(module)})
    graphlib.TopologicalSorter(rooms).prepare()


LIGHT = [name for name in FILES if name.split(".")[1:2] in (["cluster"], ["plan"], ["report"], ["sweep"])
         and name != PRELOAD]


@pytest.mark.parametrize("modules", [[*LIGHT, "src.tasks.__main__"], ["train_sample_tasks"],
                                     ["train_sample_instructions_lora"], ["train_multitask"]], ids=lambda m: m[-1])
def test_light_commands_load_nothing_heavy(modules):
    code = f"import sys, {', '.join(modules)}; print(*({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stdout + done.stderr


def test_sizes():
    large = []
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            limit = {ast.FunctionDef: 60, ast.AsyncFunctionDef: 60, ast.ClassDef: 150}.get(type(node))
            if limit and (lines := node.end_lineno - node.lineno + 1) > limit:
                large.append(f"{module}.{node.name}: {lines} lines, at most {limit}")
    assert not large


def test_attributes_are_set_in_init():
    """Whoever reads __init__ (or the fields of a data class) knows all that an object holds."""
    wrong = []
    for module, path in FILES.items():
        for cls in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(cls, ast.ClassDef):
                continue
            known = {target.id for node in cls.body for target in assigned(node) if isinstance(target, ast.Name)}
            known |= OF_TRANSFORMERS if cls.name == "Trainer" else set()
            methods = [node for node in cls.body if isinstance(node, ast.FunctionDef)]
            set_in = {method.name: {target.attr for node in ast.walk(method) for target in assigned(node)
                                    if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"}
                      for method in methods}
            inherited = cls.bases and not set_in.get("__init__")  # then another class has the __init__
            known |= set_in.pop("__init__", set()) | (set_in.pop("__post_init__", set()))
            wrong += [f"{module}.{cls.name}.{name} sets {', '.join(sorted(names - known))}"
                      for name, names in set_in.items() if names - known and not inherited]
    assert not wrong


def assigned(node: ast.AST) -> Iterator[ast.expr]:
    """What a statement assigns to, tuples taken apart."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(
        node, ast.AnnAssign | ast.AugAssign) else [item.optional_vars for item in node.items
                                                   if item.optional_vars] if isinstance(node, ast.With) else []
    for target in targets:
        yield from target.elts if isinstance(target, ast.Tuple | ast.List) else [target]


def test_these_tests_see():
    source = "import a\nfrom src import metrics\nclass D:\n    def e(self):\n        from src.tasks import task\n"
    assert list(imported(ast.parse(source))) == ["a", "src.metrics", "src.tasks.task"]
    assert room("src.metrics") == "ground" and room("src.tasks.task") == room("src.tasks") == "tasks"
    assert room("train_multitask") == "scripts" and room("src.tasks.__main__") == "commands"
    assert "src.cli" in imports("src.tasks.task")
