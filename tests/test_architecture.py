"""The rooms of the house, and which way imports may go."""

import ast
from pathlib import Path

import adalora_qat

PACKAGE = Path(adalora_qat.__file__).parent
# A module imports only from rooms to its left.
ROOMS = [
    "errors", "files", "progress", "ahead", "predictor", "config", "recipe", "imaging", "runtime",
    "phantom", "corpus", "samples", "model", "adapt", "quantize", "checkpoint", "train",
    "baselines", "export", "evaluate", "report", "release", "study", "demo", "cli",
]  # fmt: skip
# evaluate sees models only through the Predictor protocol; report draws what it is given.
FORBIDDEN = {
    room: {"model", "adapt", "quantize", "checkpoint", "train", "baselines", "export"}
    for room in ("evaluate", "report")
}


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("adalora_qat.")}


def test_imports_go_left_only() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path == PACKAGE / "__init__.py":
            continue
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        assert own in ROOMS, f"{path} is in no known room"
        allowed = set(ROOMS[: ROOMS.index(own) + 1]) - FORBIDDEN.get(own, set())
        targets = {room(name) for name in imports(path)} & set(ROOMS)
        wrong += [f"{path.relative_to(PACKAGE)} imports {name}" for name in targets - allowed]
    assert not wrong


def test_no_module_named_for_leftovers() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "common", "helpers", "base", "misc"}
