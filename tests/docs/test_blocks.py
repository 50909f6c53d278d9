"""Every block of commands and of Python in README, tutorial and how-to runs, in order.

A page's blocks run in one empty folder. Commands of the package run in this process, which saves
their imports; everything else runs in bash. Above a block, a comment can say

- ``<!-- not run: REASON -->``: the block is left out, and listed below;
- ``<!-- given: NAME.png … -->``: files that a reader has, here phantoms.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from adalora_qat.cli import main
from adalora_qat.phantom.phantom import phantom

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]
# Blocks that cannot run here, by page; each says why above itself.
NOT_RUN = {
    "README.md": 1, "baselines.md": 1, "own-data.md": 1, "own-model.md": 3, "packaged-model.md": 1,
    "quantization.md": 1, "serve.md": 3, "share.md": 2, "speed.md": 2, "structures.md": 1,
    "tutorial.md": 5,
}  # fmt: skip
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>sh|python)$")
COMMENT = re.compile(r"^ *<!-- (?P<kind>not run|given): (?P<words>.+) -->$")
# The tutorial's recipe takes minutes; the same commands with a toy network take seconds.
TOY = """name: demo
extends: demo
model: {variant: tiny-test, init: random, side: 64}
adapt: {rank: 6, schedule: [{epoch: 7, rank: 4}]}
stage1: {epochs: 4, lr_encoder: 5.0e-3, lr_decoder: 5.0e-3}
"""


@dataclass(frozen=True)
class Block:
    """A fenced block, its language, and what the comment above it says."""

    line: int
    language: str
    text: str
    not_run: str | None
    given: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page, in order."""
    lines = page.read_text("utf-8").splitlines()
    at, notes = 0, dict[str, str]()
    while at < len(lines):
        if told := COMMENT.match(lines[at]):
            notes[told["kind"]] = told["words"]
        elif opened := FENCE.match(lines[at]):
            end = lines.index(f"{opened['indent']}```", at + 1)
            inside = [line.removeprefix(opened["indent"]) for line in lines[at + 1 : end]]
            given = tuple(notes.get("given", "").split())
            yield Block(at + 1, opened["language"], "\n".join(inside), notes.get("not run"), given)
            at, notes = end, {}
        elif lines[at].strip():
            notes = {}
        at += 1


def statements(text: str) -> Iterator[str]:
    """Yield the statements of a block of commands: continued lines and here-documents whole."""
    lines = iter(text.splitlines())
    for line in lines:
        statement = line
        while statement.endswith("\\"):
            statement = statement[:-1] + next(lines)
        if here := re.search(r"<<'(\w+)'", statement):
            for inside in lines:
                statement += f"\n{inside}"
                if inside == here[1]:
                    break
        if statement.strip() and not statement.lstrip().startswith("#"):
            yield statement


def command(statement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one statement; one of the package in this process, as the console script would."""
    if not statement.startswith("adalora-qat "):
        subprocess.run(["bash", "-ec", statement], check=True)
        return
    # A process has one precision for life; here many commands share it.
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(sys, "argv", shlex.split(statement, comments=True))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None), f"{statement!r} ended with {ended.value.code}"


def run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, swap: str = "demo") -> None:
    """Run a page's blocks in an empty folder; ``swap`` takes the place of the recipe ``demo``."""
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        for number, name in enumerate(block.given):
            Image.fromarray(phantom(number, 512).image).save(folder / name)
        if block.not_run:
            continue
        if block.language == "python":
            # The block's own line numbers, so that a traceback points into the page.
            code = compile("\n" * block.line + block.text, str(page), "exec")
            exec(code, names)
            continue
        for statement in statements(block.text):
            command(statement.replace(" train demo ", f" train {swap} "), monkeypatch)


@pytest.mark.weights
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(page, tmp_path, monkeypatch)


def test_the_tutorial_runs_with_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.yaml").write_text(TOY)
    run(TUTORIAL, tmp_path, monkeypatch, "toy.yaml")


@pytest.mark.slow
@pytest.mark.weights
def test_the_tutorial_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(TUTORIAL, tmp_path, monkeypatch)


def test_what_is_not_run_is_listed_and_says_why() -> None:
    found: dict[str, int] = {}
    for page in (*PAGES, TUTORIAL):
        for block in blocks(page):
            if block.not_run is not None:
                found[page.name] = found.get(page.name, 0) + 1
                assert len(block.not_run.split()) >= 3, f"{page.name}:{block.line} gives no reason"
    assert found == NOT_RUN


def test_continued_lines_and_here_documents_stay_whole() -> None:
    text = "cat > a <<'END'\n# kept\nEND\n# left out\nadalora-qat x \\\n    --y 1  # why\n"
    assert list(statements(text)) == [
        "cat > a <<'END'\n# kept\nEND",
        "adalora-qat x     --y 1  # why",
    ]
