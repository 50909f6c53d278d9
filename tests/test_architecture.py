"""The rooms of the package, which way imports may go, and what each room may need."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import adalora_qat

PACKAGE = Path(adalora_qat.__file__).parent
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
# A module imports only from rooms to its left.
ROOMS = [
    "errors", "files", "progress", "ahead", "predictor", "config", "recipe", "imaging", "chest",
    "runtime", "dicom", "phantom", "corpus", "samples", "model", "adapt", "quantize", "checkpoint",
    "train",
    "baselines", "export", "evaluate", "report", "release", "study", "demo", "serve", "cli",
]  # fmt: skip
# What the base install runs: nothing but its own dependencies when a module is imported.
BASE = (
    "errors", "files", "progress", "ahead", "predictor", "config", "recipe", "imaging", "chest",
    "runtime",
)  # fmt: skip
# These neither import torch nor a room that does, at the top of a module or in a function.
NO_TORCH = (*BASE, "dicom", "phantom", "corpus", "evaluate", "report", "serve")
TORCH_ROOMS = {
    "samples", "model", "adapt", "quantize", "checkpoint", "train", "baselines", "export",
    "release", "study",
}  # fmt: skip
TORCH = {"torch", "torchvision", "transformers", "accelerate", "peft", "onnx", "onnxscript"}
NOT_IN_BASE = {
    "pandas", "scipy", "cv2", "matplotlib", "skimage", "pyarrow", "pydicom", "jinja2", "openvino",
}  # fmt: skip
# The optional extras `[dicom]` and `[openvino]`: a function imports these modules where a file is
# DICOM, or the engine asked for.
NEED_EXTRA = {
    "imaging/dicom.py": "pydicom",
    "imaging/dicom_pixels.py": "pydicom",
    "runtime/openvino_network.py": "openvino",
}
LARGEST_ROOM = 4500


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Return names of modules, and of what is taken from them, dotted."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports(path: Path) -> set[str]:
    """Return a module's imports wherever they stand, in functions and for type checking too."""
    return imported(ast.walk(tree_of(path)))


def imports_at_the_top(path: Path) -> set[str]:
    return imported(_outside_functions(tree_of(path)))


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or typing_only:
            continue
        yield child
        yield from _outside_functions(child)


def own_modules() -> Mapping[str, Path]:
    named = {}
    for path in sources():
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def outermost(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_the_rooms_are_those_that_exist() -> None:
    existing = {room_of(path) for path in sources()} - {"__init__"}
    assert existing == set(ROOMS)


def test_imports_go_left_only() -> None:
    wrong = []
    for path in sources():
        if path == PACKAGE / "__init__.py":
            continue
        own = room_of(path)
        targets = {room(name) for name in imports(path) if name.startswith("adalora_qat.")}
        barred = (targets & set(ROOMS)) - set(ROOMS[: ROOMS.index(own) + 1])
        # evaluate, report and serve stand behind rooms with torch, and may not use them.
        barred |= targets & TORCH_ROOMS if own in NO_TORCH else set()
        wrong += [f"{path.relative_to(PACKAGE)} imports {name}" for name in sorted(barred)]
    assert not wrong


def test_no_module_imports_itself_in_a_circle() -> None:
    # Imports inside functions count: a circle put off is a circle.
    modules = own_modules()
    graph = {name: (imports(path) & set(modules)) - {name} for name, path in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" ← ".join(error.args[1]))


def test_rooms_without_torch_name_nothing_that_brings_it() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sources()
        if room_of(path) in NO_TORCH
        for name in sorted(outermost(imports(path)) & TORCH)
    ]
    assert not wrong


def test_the_base_install_imports_its_own_dependencies_only() -> None:
    wrong = []
    for path in sources():
        if room_of(path) not in (*BASE, "__init__", "cli"):
            continue
        barred = NOT_IN_BASE - {NEED_EXTRA.get(path.relative_to(PACKAGE).as_posix(), "")}
        found = outermost(imports_at_the_top(path)) & (barred | TORCH)
        # And not by way of a module that needs an extra.
        found |= {
            name
            for name in imports_at_the_top(path)
            if f"{name.removeprefix('adalora_qat.').replace('.', '/')}.py" in NEED_EXTRA
            and path.relative_to(PACKAGE).as_posix() not in NEED_EXTRA
        }
        wrong += [f"{path.relative_to(PACKAGE)} imports {name}" for name in sorted(found)]
    assert not wrong


def test_every_module_without_torch_is_imported_where_torch_is_not() -> None:
    names = [name for name in own_modules() if room(name) in NO_TORCH]
    script = f"""
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(TORCH)!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
for name in {names!r}:
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = """
import sys, adalora_qat
heavy = {"torch", "onnxruntime", "numpy", "PIL", "pydantic", "typer"} & set(sys.modules)
sys.exit(f"loaded: {heavy}" if heavy else 0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_no_room_is_larger_than_a_room_should_be() -> None:
    lines: dict[str, int] = {}
    for path in sources():
        lines[room_of(path)] = lines.get(room_of(path), 0) + len(path.read_text().splitlines())
    assert {name: count for name, count in lines.items() if count > LARGEST_ROOM} == {}


def test_contributing_lists_these_rooms_in_this_order() -> None:
    section = CONTRIBUTING.read_text().partition("## How the code is laid out")[2]
    section = section.partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| .* \| (yes|no) \|$", section, flags=re.MULTILINE)
    listed = [(name, torch) for names, torch in rows for name in re.findall(r"`(\w+)`", names)]
    assert [name for name, _ in listed] == ROOMS
    assert [name for name, torch in listed if torch == "no"] == list(NO_TORCH)


def test_no_module_named_for_leftovers() -> None:
    names = {path.stem for path in sources()}
    assert not names & {"utils", "util", "common", "helpers", "base", "misc"}
