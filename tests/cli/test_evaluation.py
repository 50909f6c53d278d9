"""``evaluate``, ``compare`` and ``report`` from outside."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TINY = [
    "model.variant=tiny-test", "model.init=random", "model.side=64", "adapt.rank=4",
    "adapt.schedule_epochs=2", "adapt.schedule=[{epoch: 1, rank: 3}, {epoch: 2, rank: 2}]",
    "stage1.epochs=2", "stage2.epochs=1",
]  # fmt: skip


def run(*arguments: object, columns: int = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "adalora_qat.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": str(columns)},
    )


def refused(result: subprocess.CompletedProcess[str], *words: object) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    for word in words:
        assert str(word) in result.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny run on phantoms, and evaluate its two float stages."""
    from adalora_qat.corpus.prepare import prepare
    from adalora_qat.phantom.phantom import write_phantoms

    root = tmp_path_factory.mktemp("home")
    write_phantoms(root / "phantoms", 20, seed=0, side=64)
    prepare({"phantom": root / "phantoms"}, root / "data", 0, (0.5, 0.2, 0.3))
    trained = run("train", "demo", *TINY, "--data", root / "data", "--out", root / "run", "--cpu")
    assert trained.returncode == 0, trained.stderr
    for stage in ("stage1", "stage2"):
        model, out = root / "run" / stage / "model.safetensors", root / stage
        done = run("evaluate", model, "--data", root / "data", "--out", out, "--cpu", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["n"] == 6
    return root


def test_reliability_compares_belief_and_truth(home: Path, tmp_path: Path) -> None:
    result = run("reliability", home / "stage1", home / "stage2", "--out", tmp_path / "r")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("expected calibration error") == 2
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert {"reliability.csv", "calibration.csv", "reliability.png"} <= names
    refused(run("reliability", tmp_path), "evaluate first")


def test_compare_prints_tables_and_verdicts(home: Path) -> None:
    result = run("compare", home / "stage1", home / "stage2", "--baseline", "AdaLoRA")
    assert result.returncode == 0, result.stderr
    for title in ("Segmentation performance", "Parameter efficiency", "Component-wise ablation"):
        assert title in result.stdout
    assert re.search(r"Full QAT +AdaLoRA, INT8 +full, INT8", result.stdout)
    assert "paper" not in result.stdout
    asked = run("compare", home / "stage1", home / "stage2", "--baseline", "AdaLoRA", "--paper")
    assert "95.60" in asked.stdout
    assert "Not shown" not in result.stdout
    assert "- DSC (lung), Full QAT against AdaLoRA: 6 cases, 0 dropped." in result.stdout


def test_compare_fits_eighty_columns_and_says_what_it_leaves_out(home: Path) -> None:
    names = (home / "stage1", f"a model with a very long name={home / 'stage2'}")
    result = run("compare", *names, "--baseline", "AdaLoRA", columns=80)
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    told = " ".join(result.stdout.split())
    assert "Not shown at 80 columns: NSD" in told
    assert "--out FOLDER writes every table whole" in told


def test_compare_writes_every_face_and_answers_programs(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables"
    names = [f"float={home / 'stage1'}", f"int8={home / 'stage2' / 'cases.csv'}"]
    result = run("compare", *names, "--baseline", "float", "--out", out, "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["baseline"] == "float"
    assert [model["name"] for model in answer["models"]] == ["float", "int8"]
    assert answer["models"][0]["facts"]["trainable"] > 0
    assert {path.name for path in out.iterdir()} == {Path(file).name for file in answer["files"]}
    suffixes = {path.suffix for path in out.glob("table-1-segmentation.*")}
    assert suffixes == {".md", ".tex", ".csv"}


def test_compare_refuses_in_one_line_and_writes_nothing(home: Path, tmp_path: Path) -> None:
    a, b, out = home / "stage1", home / "stage2", tmp_path / "out"
    refused(run("compare", a, b, "--baseline", "unet", "--out", out), "'unet'", "AdaLoRA")
    refused(run("compare", a, "--baseline", "AdaLoRA", "--out", out), "at least two models")
    refused(run("compare", a, home / "data", "--baseline", "x", "--out", out), "no per-case table")
    (tmp_path / "file").write_text("x")
    refused(run("compare", a, b, "--baseline", a, "--out", tmp_path / "file"), "is a file")
    assert not out.exists()


def test_report_makes_the_page_and_its_folder_compares(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    few = ("--cases", 4, "--title", "Phantoms & co")
    result = run("report", home / "run", "--data", home / "data", "--out", out, *few, "--cpu")
    assert result.returncode == 0, result.stderr
    assert "report.html" in result.stdout
    html = out.read_text("utf-8")
    assert "<h1>Phantoms &amp; co</h1>" in html
    assert 'id="fig-3-weight-error"' in html
    assert 'id="box-jitter"' not in html
    again = run("compare", tmp_path / "report_files", "--baseline", "AdaLoRA", "--json")
    assert again.returncode == 0, again.stderr
    models = [model["name"] for model in json.loads(again.stdout)["models"]]
    assert sorted(models) == ["AdaLoRA", "Full QAT", "PTQ", "Random weights"]


def test_report_refuses_in_one_line_and_writes_nothing(home: Path, tmp_path: Path) -> None:
    data, out = home / "data", tmp_path / "page.html"
    nowhere = tmp_path / "nowhere"
    refused(run("report", home / "run", "--data", data, "--out", tmp_path / "page"), "report.html")
    refused(run("report", nowhere, "--data", data, "--out", out), nowhere, "does not exist")
    refused(run("report", home / "run", "--data", nowhere, "--out", out), nowhere)
    refused(
        run("report", home / "run", "--data", data, "--out", out, "--target", "infection"),
        "no case with a mask of infection",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["compare", "report"])
def test_the_commands_explain_themselves(command: str) -> None:
    result = run(command, "--help")
    assert result.returncode == 0
    assert "--baseline" in result.stdout
