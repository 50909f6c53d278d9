"""The whole job, on a set whose masks are of another size than its images."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adalora_qat import demo
from adalora_qat.errors import UserError
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.study.entries import study_of

TINY = (
    "model.variant=tiny-test", "model.init=random", "model.weights=null", "model.side=64",
    "adapt.rank=4", "adapt.schedule_epochs=2",
    "adapt.schedule=[{epoch: 1, rank: 3}, {epoch: 2, rank: 2}]",
    "stage1.epochs=2", "stage2.epochs=1",
    # A model this small cannot be as exact as the gate asks of a real one.
    "export.min_dice=0", "export.min_pixel_agreement=0",
)  # fmt: skip


class Silent:
    def phase(self, name: str) -> None:
        pass

    def progress(self, done: int, total: int, what: str) -> None:
        pass


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write phantoms as the COVID-19 Radiography Database is laid out: 299 px, masks of 256."""
    root = tmp_path_factory.mktemp("radiography")
    drawn = root / "drawn"
    write_phantoms(drawn, 20, seed=0, side=299)
    for image in sorted((drawn / "images").iterdir()):
        parts = [Image.open(drawn / "masks" / f"{s}_lung" / image.name) for s in ("left", "right")]
        whole = Image.new("L", parts[0].size)
        for part in parts:
            whole.paste(255, mask=part.convert("L").point(lambda value: 255 * (value > 0)))
        for name, picture in (
            ("images", Image.open(image)),
            ("masks", whole.resize((256, 256), Image.Resampling.NEAREST)),
        ):
            folder = root / "set" / "Normal" / name
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"Normal-{image.name}")
    return root / "set"


def test_masks_of_another_size_end_on_the_page(
    radiographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: dict[str, Any] = {"models": {}, "speedup": {}}
    monkeypatch.setattr(demo, "compare_speed", lambda *_, **__: timed)
    out, steps = tmp_path / "run", list[int]()
    summary = demo.run_demo(
        out,
        sources={"covid19_radiography": radiographs},
        count=0,
        seed=0,
        overrides=TINY,
        cpu=True,
        watch=Silent(),
        on_step=lambda report: steps.append(report.step),
    )
    names = ["zero_shot", "decoder_only", "stage1", "ptq", "qat", "int8_runtime"]
    assert [row["name"] for row in summary["rows"]] == names
    assert steps
    assert "299 × 299" in (out / "report.html").read_text("utf-8")
    # What training wrote of itself stands beside every evaluation, and is what compare reads.
    written = json.loads((out / "facts.json").read_text("utf-8"))
    assert list(written) == ["stage1", "ptq", "stage2"]
    study = study_of([str(out)], "decoder_only")
    told = {name: study.facts[name] for name in names}
    assert told["zero_shot"].trainable == 0
    assert told["stage1"].trainable == written["stage1"]["trainable"]
    assert told["int8_runtime"].bytes == summary["sizes_bytes"]["int8_onnx"]
    rows = [told[name].paper for name in names]
    assert rows == [None, "decoder", "adalora", None, "fullqat", "fullqat"]
    # Other data in the same folder would be answered with what is there.
    other = {"covid19_radiography": tmp_path / "other"}
    with pytest.raises(UserError, match=r"holds a demo of .*/set.*, not of .*/other.*--out"):
        demo.run_demo(out, sources=other, count=0, seed=0, overrides=TINY, cpu=True, watch=Silent())
