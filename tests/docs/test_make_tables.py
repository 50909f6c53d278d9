"""The README's tables come from the summaries, and say so where there are none."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

SUMMARY = {
    "rows": [
        {"name": "zero_shot", "dice_mean": 0.94862, "dice_std": 0.034, "iou_mean": 0.9, "n": 82},
        {"name": "int8_runtime", "dice_mean": 0.97, "dice_std": 0.018, "iou_mean": 0.94, "n": 82},
    ],
    "sizes_bytes": {"fp32": 40_000_000, "int8_onnx": 16_000_000},
    "parity": {"dice_min": 0.9981, "pixel_agreement": 0.99975},
    "ranks": {"before": {"a": 48, "b": 48}, "after": {"a": 40, "b": 24}},
    "seconds": {"stage1": 100.0, "stage2": 20.4},
    "seed": 0,
    "commit": "0123456789abcdef0123456789abcdef01234567-dirty",
}


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    sys.path.insert(0, str(ROOT / "docs"))
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_study_that_was_not_run_has_no_figures(tables: ModuleType, tmp_path: Path) -> None:
    text, notes = tables.results_text(tmp_path)
    assert text.count("not yet run") == 10
    assert [note.split()[0] for note in notes] == [
        "results/study/summary.json",
        "results/study/summary.json",
        "results/runtime/summary.json",
        "results/speed/one_thread/litemedsam.json",
        "results/speed/without_vnni/litemedsam.json",
        "results/speed/summary.json",
        "results/shipped/speed.json",
        "results/shipped/speed_without_vnni.json",
        "results/shipped/warnings.json",
        "results/demo/summary.json",
    ]
    assert "|" not in text


def test_a_study_shows_what_its_summary_holds(tables: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "results" / "demo" / "summary.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(SUMMARY))
    text, notes = tables.results_text(tmp_path)
    assert len(notes) == 9
    assert "| Zero-shot, pretrained weights | 0.9486 ± 0.0340 | 0.9000 | 82 |" in text
    assert "INT8 ONNX, as shipped 16.00 MB (2.50× smaller)" in text
    assert "lowest Dice 0.9981, equal pixels 99.9750%" in text
    assert "48 a layer before pruning, 32.0 on average after it (24 to 40 over 2 layers)" in text
    assert "120 in all (stage1 100, stage2 20)" in text
    assert "commit `0123456789ab-dirty`" in text


def test_the_study_shows_rows_that_ran(tables: ModuleType, tmp_path: Path) -> None:
    def entry(row: str, stage: str, dataset: str, box: str, dice: float) -> dict[str, object]:
        sources = {s: {"n": 1, "dice_mean": dice} for s in ("jsrt", "shenzhen")}
        return {
            "row": row, "title": row.upper(), "stage": stage, "set": dataset, "box": box,
            "seeds": [0, 1], "dice_mean": dice, "by_source": sources, "n": 4,
            "dice_sd_over_seeds": 0.01, "dice_sd_over_cases": 0.02,
            "facts": {"bytes": 10_500_000},
        }  # fmt: skip

    rows = [
        entry("int8-all", "ptq", "test", "oracle", 0.91),
        entry("int8-all", "stage2", "test", "oracle", 0.92),
        entry("nnunet", "stage1", "test", "none", 0.93),
        entry("nnunet", "stage1", "external", "none", 0.8),
        entry("jsrt-int8", "stage2", "test", "oracle", 0.9),
        entry("jsrt-int8-long", "stage2", "test", "oracle", 0.94),
        entry("shenzhen-int8", "stage2", "test", "oracle", 0.96),
    ]
    preferred = {"jsrt": {"int8": "jsrt-int8-long"}, "shenzhen": {"int8": "shenzhen-int8"}}
    file = tmp_path / "results" / "study" / "summary.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"rows": rows, "preferred": preferred}))
    text, _ = tables.results_text(tmp_path)
    assert "| INT8-ALL | oracle | 2 | 0.9200 ± 0.0100 | 0.9200 | 0.9200 | – | 10.5 |" in text
    assert "| NNUNET | none | 2 | 0.9300 ± 0.0100 | 0.9300 | 0.9300 | 0.8000 | 10.5 |" in text
    assert "its standard error over images is 0.0100 to 0.0100" in text
    # Two recipes from JSRT: the first means 0.90 and 0.96, the chosen one 0.94 and 0.96.
    assert "| INT8 everywhere | 2 | 0.9300 | 0.9500 | 2 |" in text
    assert "DeepLab" not in text
    accuracy = tables.accuracy_text(
        {"rows": [*rows, entry("auto", "stage2", "test", "automatic", 0.9)]}
    )
    assert "| automatic | 2 | 0.9000 ± 0.0100 |" in accuracy
    assert "INT8-ALL" not in accuracy


def test_ratios_are_to_the_first_three_files(tables: ModuleType) -> None:
    def row(name: str, seconds: float) -> dict[str, object]:
        return {"name": name, "size_bytes": 10**7, "median_s": seconds, "peak_mb": 200.4}

    origin = {"processor": "P", "threads": 1, "data": "D", "weights": "W", "commit": "c"}
    rows = [row("torch", 2.0), row("export", 1.5), row("ours", 1.0), row("int8", 0.5)]
    text = tables.latency_text({"rows": rows, **origin})
    assert "| int8 | 10.0 | 500 | 200 | 4.00 | 3.00 | 2.00 |" in text
    assert "| torch | 10.0 | 2000 | 200 | 1.00 | 0.75 | 0.50 |" in text


def test_warnings_are_counted_over_hospitals(tables: ModuleType) -> None:
    rows = [
        {"images": "a", "change": "as it is", "n": 60, "warned": 1},
        {"images": "b", "change": "as it is", "n": 12, "warned": 0},
        {"images": "noise and ramps", "change": "as it is", "n": 5, "warned": 5},
    ]
    text = tables.warnings_text({"rows": rows})
    assert "chests, as it is 1/72, noise and ramps 5/5" in text


def test_only_what_is_between_the_markers_changes(tables: ModuleType) -> None:
    text = f"a\n{tables.BEGIN}\nold\n{tables.END}\nb\n"
    assert tables.between_markers(text, "new") == f"a\n{tables.BEGIN}\nnew\n{tables.END}\nb\n"
    for wrong in ("no markers", f"{tables.END}{tables.BEGIN}", text + text):
        with pytest.raises(ValueError, match="once each"):
            tables.between_markers(wrong, "new")


def test_the_pages_are_up_to_date(tables: ModuleType) -> None:
    for page, made in ((tables.README, tables.readme_text), (tables.RESULTS, tables.results_text)):
        told = page.read_text("utf-8")
        now = tables.between_markers(told, made(ROOT)[0])
        assert told == now, f"{page.name}: run python docs/make_tables.py"


def test_the_readme_stays_short(tables: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 130
    inside = readme.partition(tables.BEGIN)[2].partition(tables.END)[0]
    blocks = [part for part in inside.split("\n\n") if part.startswith("|")]
    assert len(blocks) == 2
    assert all(len(block.splitlines()) - 2 <= 8 for block in blocks)
