"""What two versions of the package write from the same inputs, held against each other.

    python benchmarks/compare_outputs.py BEFORE AFTER

BEFORE and AFTER are folders that the two versions made by the same commands on one machine: a
demo's run, an evaluation, tables, a report's page and what is beside it. Every JSON, CSV, Parquet,
Markdown, LaTeX, HTML, ONNX and safetensors file in either is compared: values, texts, the tables
and figures of a page, the outputs of a model on a fixed image. What differs is printed, and the
exit status is 1. Times, versions, the machine, paths and the commit are left out, and files whose
name ends in ``facts.json`` or ``model.json`` may be new.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pandas as pd

SUFFIXES = (".json", ".csv", ".parquet", ".md", ".tex", ".html", ".onnx", ".safetensors", ".yaml")
# Keys of JSON files, columns of tables and parts of pages that tell of time and place; hashes
# of what is compared itself.
UNTOLD = re.compile(
    r".*seconds.*|.*_s|speed|speedup|.*latency.*|versions|commit|machine|peak_mb|ratios|words"
    r"|files|page|manifest|sha256",
    re.IGNORECASE,
)
TIMES = re.compile(r"latency|^s$", re.IGNORECASE)
PARTS = {"time", "provenance", "front"}
# A hash in a name, of files' times and places among others.
TAG = re.compile(r"-[0-9a-f]{10}(?=$|/|\.)")
NEW = re.compile(r"(^|/)(facts|model)\.json$")
MOST = 5


def differences(before: Path, after: Path) -> Iterator[str]:
    """Yield what differs, a line each."""
    here, there = files(before), files(after)
    yield from (f"{name}: only before" for name in sorted(here.keys() - there))
    added = sorted(there.keys() - here)
    yield from (f"{name}: only after" for name in added if not NEW.search(name))
    for name in sorted(here.keys() & there):
        found = list(_compared(here[name], there[name]))
        yield from (f"{name}: {line}" for line in found[:MOST])
        if len(found) > MOST:
            yield f"{name}: and {len(found) - MOST} more"


def files(root: Path) -> dict[str, Path]:
    """Return what is compared: name without hashes → path."""
    found = (p for p in root.rglob("*") if p.suffix in SUFFIXES and p.name != "seconds.json")
    names = {TAG.sub("", path.relative_to(root).as_posix()): path for path in found}
    return {n: path for n, path in names.items() if not {"speed", "cache"} & {*n.split("/")}}


def _compared(a: Path, b: Path) -> Iterator[str]:
    if a.suffix == ".json":
        one, other = (json.loads(path.read_text("utf-8")) for path in (a, b))
        yield from _values(one, other, "")
    elif a.suffix == ".parquet":
        yield from _frames(pd.read_parquet(a), pd.read_parquet(b))
    elif a.suffix == ".csv":
        yield from _frames(*(pd.read_csv(path, keep_default_na=False) for path in (a, b)))
    elif a.suffix == ".html":
        yield from _pages(a.read_text("utf-8"), b.read_text("utf-8"))
    elif a.suffix == ".onnx":
        yield from _outputs(a, b)
    elif a.suffix == ".safetensors":
        yield from () if a.read_bytes() == b.read_bytes() else ("other bytes",)
    else:
        yield from _lines(*(path.read_text("utf-8").splitlines() for path in (a, b)))


def _values(a: Any, b: Any, at: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            if not UNTOLD.fullmatch(key):
                yield from _values(a.get(key), b.get(key), f"{at}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _values(one, other, f"{at}[{index}]")
    elif not _same(a, b):
        yield f"{at} is {_short(a)} before, {_short(b)} after"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    if isinstance(a, str) and isinstance(b, str):
        if a.startswith("/"):
            # A path: of other folders, but the same file.
            return Path(a).name == Path(b).name
        return TAG.sub("", a) == TAG.sub("", b)
    return bool(a == b)


def _frames(a: pd.DataFrame, b: pd.DataFrame) -> Iterator[str]:
    columns = [[c for c in frame if not UNTOLD.fullmatch(str(c))] for frame in (a, b)]
    if columns[0] != columns[1]:
        yield f"columns {columns[0]} before, {columns[1]} after"
        return
    if len(a) != len(b):
        yield f"{len(a)} rows before, {len(b)} after"
        return
    for column in columns[0]:
        for row, (one, other) in enumerate(zip(a[column], b[column], strict=True)):
            if not _same(one, other) and not (pd.isna(one) and pd.isna(other)):
                yield f"row {row}, {column}: {_short(one)} before, {_short(other)} after"


class _Page(HTMLParser):
    """A page as its words, tables and figures, each under the id of the block it stands in."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, str]] = []
        self._blocks: list[tuple[str, str]] = []
        self._silent = 0
        self._heads: list[str] = []
        self._in_head = False
        self._column: int | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("section", "figure", "article", "details"):
            self._blocks.append((tag, given.get("id") or given.get("class") or tag))
        self._silent += tag in ("style", "script")
        if tag == "thead":
            self._heads, self._in_head = [], True
        if tag == "tr":
            self._column = -1
        if tag in ("th", "td") and self._column is not None:
            self._column += 1
        for kind in ("alt", "aria-label"):
            if given.get(kind):
                self._say(given[kind] or "")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("style", "script")
        self._in_head = self._in_head and tag != "thead"
        if tag == "table":
            self._column = None
        if self._blocks and self._blocks[-1][0] == tag:
            self._blocks.pop()

    def handle_data(self, data: str) -> None:
        if not data.strip() or self._silent:
            return
        text = " ".join(data.split())
        if self._in_head:
            self._heads.append(text)
        elif self._column is None or not TIMES.search(self._heads[self._column]):
            self._say(text)

    def _say(self, text: str) -> None:
        names = [name for _, name in self._blocks]
        if not PARTS & {*names} and not re.fullmatch(r"[\d.]+ min", text):
            self.said.append(("/".join(names[-2:]), text))


def _pages(a: str, b: str) -> Iterator[str]:
    pages = []
    for text in (a, b):
        page = _Page()
        page.feed(text)
        pages.append(page.said)
    for one, other in zip_longest(*pages, fillvalue=("", "nothing")):
        if one != other:
            yield f"{one[0]}: {_short(one[1])} before, {_short(other[1])} after"


def _outputs(a: Path, b: Path) -> Iterator[str]:
    """Compare the outputs of two exported models for one synthetic image with one box."""
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 3
    sessions = [ort.InferenceSession(path, quiet) for path in (a, b)]
    names = [[(i.name, i.type, i.shape) for i in s.get_inputs()] for s in sessions]
    if names[0] != names[1]:
        yield f"inputs {names[0]} before, {names[1]} after"
        return
    feeds = {name: _input(kind, shape) for name, kind, shape in names[0]}
    for info, one, other in zip(
        sessions[0].get_outputs(), *(s.run(None, feeds) for s in sessions), strict=True
    ):
        if not np.array_equal(one, other):
            yield f"output {info.name} differs by up to {np.abs(one - other).max():.3g}"


def _input(kind: str, shape: list[Any]) -> np.ndarray[Any, Any]:
    size = [each if isinstance(each, int) else 1 for each in shape]
    if size[-1] == 4:
        side = 40.0
        box = np.broadcast_to(np.array([0.2, 0.1, 0.8, 0.9]) * side, size)
        return box.astype(np.float32)
    drawn = np.random.default_rng(0).random(size)
    return drawn.astype({"tensor(float)": np.float32, "tensor(uint8)": np.uint8}[kind])


def _lines(a: list[str], b: list[str]) -> Iterator[str]:
    for one, other in zip_longest(_without_times(a), _without_times(b), fillvalue=""):
        if one != other:
            yield f"{_short(one)} before, {_short(other)} after"


def _without_times(lines: list[str]) -> Iterator[str]:
    """Yield the lines of a text, the cells of a Markdown or LaTeX table's times left out."""
    heads: list[str] = []
    for line in lines:
        cells = re.split(r"(?<!\\)[|&]", line)
        if len(cells) > 1 and len(cells) != len(heads):
            heads = [cell.strip() for cell in cells]
        if len(cells) == 1:
            yield line
        else:
            kept = zip(cells, heads, strict=True)
            yield "|".join(cell for cell, head in kept if not TIMES.search(head))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 90 else f"{text[:87]}…"


def main() -> None:
    """Compare, print, and say by the exit status whether anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    given = parser.parse_args()
    for folder in (given.before, given.after):
        if not folder.is_dir():
            parser.error(f"{folder} is no folder")
    found = list(differences(given.before, given.after))
    for line in found:
        print(line)
    compared = len(files(given.before).keys() & files(given.after))
    print(f"{compared} files compared, {len(found)} differences", file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
