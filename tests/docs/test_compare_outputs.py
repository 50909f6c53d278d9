"""The script that holds what two versions write against each other."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compare_outputs.py"
HTML = """<section id="results"><h2>Results</h2><table><thead><tr><th>Model</th><th>DSC</th>
<th>CPU latency (ms)</th></tr></thead><tbody><tr><th>a</th><td>{dice}</td><td>{ms}</td></tr>
</tbody></table><img alt="{alt}"></section><section id="time"><p>{ms}</p></section>"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_outputs", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write(folder: Path, *, dice: float = 0.9, ms: int = 5, alt: str = "a", tag: str = "0") -> Path:
    inner = folder / f"model-{tag * 10}"
    inner.mkdir(parents=True)
    summary = {"rows": [{"name": "a", "dice_mean": dice}], "seconds": ms, "out": f"/{ms}/x.png"}
    (folder / "summary.json").write_text(json.dumps(summary))
    (inner / "cases.csv").write_text(f"id,dsc,seconds\n1,{dice},{ms}\n")
    (folder / "t.md").write_text(f"| Model | DSC | CPU latency (ms) |\n| a | {dice} | {ms} |\n")
    (folder / "report.html").write_text(HTML.format(dice=dice, ms=ms, alt=alt))
    return folder


def test_times_and_places_do_not_differ(script: ModuleType, tmp_path: Path) -> None:
    before, after = write(tmp_path / "a"), write(tmp_path / "b", ms=9, tag="f")
    (after / "facts.json").write_text("{}")
    assert list(script.differences(before, after)) == []


def test_every_kind_of_difference_is_told(script: ModuleType, tmp_path: Path) -> None:
    before, after = write(tmp_path / "a"), write(tmp_path / "b", dice=0.8, alt="b")
    (before / "gone.csv").write_text("x\n1\n")
    found = list(script.differences(before, after))
    told = {line.partition(":")[0] for line in found}
    assert told == {"gone.csv", "summary.json", "model/cases.csv", "t.md", "report.html"}
    assert "report.html: results: '0.9' before, '0.8' after" in found
    assert "report.html: results: 'a' before, 'b' after" in found
