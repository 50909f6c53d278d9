import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.evaluate.case_table import read_cases
from adalora_qat.evaluate.cases import (
    NO_BOX,
    Alteration,
    evaluate_cases,
)
from adalora_qat.evaluate.mask_files import mask_path
from adalora_qat.evaluate.metrics import METRICS
from adalora_qat.predictor import Prediction

H, W = 24, 32


class Threshold:
    """Answers with what is brighter than a level inside each box; counts its calls."""

    def __init__(self, level: int = 100, name: str = "threshold") -> None:
        self.level, self._name, self.calls = level, name, 0
        self.boxes: list[NDArray[Any]] = []

    @property
    def name(self) -> str:
        return self._name

    def predict(
        self, image: NDArray[np.generic], boxes_xyxy_original: NDArray[np.generic]
    ) -> Prediction:
        self.calls += 1
        self.boxes.append(boxes_xyxy_original)
        height, width = image.shape[:2]
        boxes = np.asarray(boxes_xyxy_original, float)
        masks = np.zeros((len(boxes), height, width), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
            inside = (slice(y0, y1 + 1), slice(x0, x1 + 1))
            mask[inside] = np.asarray(image)[inside] > self.level
        return Prediction(
            masks,
            np.linspace(0.5, 0.9, len(boxes), dtype=np.float32),
            masks.astype(np.float32),
            boxes.astype(np.float32),
        )


def write(path: Path, array: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def chest(folder: Path, name: str, shift: int = 0, **facts: Any) -> Record:
    """Two lungs at 200, a heart at 120 between them, on 10; the truth is exactly that."""
    image = np.full((H, W), 10, np.uint8)
    masks = {kind: np.zeros((H, W), bool) for kind in ("left_lung", "right_lung", "heart")}
    masks["left_lung"][4:20, 3 + shift : 11 + shift] = True
    masks["right_lung"][4:20, 19 + shift : 27 + shift] = True
    masks["heart"][12:18, 12 + shift : 18 + shift] = True
    for kind, mask in masks.items():
        image[mask] = 120 if kind == "heart" else 200
    files = {kind: write(folder / kind / f"{name}.png", m) for kind, m in masks.items()}
    image_file = write(folder / "images" / f"{name}.png", image)
    return Record(f"set/{name}", "set", image_file, files, **facts)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    folder = tmp_path / "data"
    return [
        chest(folder, "a", 0, label="normal", patient="p", spacing_mm=(0.5, 0.5)),
        chest(folder, "b", 1, patient="p"),
        chest(folder, "c", 2),
    ]


def test_a_perfect_answer_scores_perfectly_on_every_target(records: list[Record]) -> None:
    targets = ["lung", "left_lung", "heart"]
    table = evaluate_cases(Threshold(), records, targets)
    assert list(zip(table["id"], table["target"], strict=True)) == [
        (f"set/{name}", target) for name in "abc" for target in targets
    ]
    lungs = table[table["target"] == "left_lung"]
    assert lungs["dsc"].tolist() == [1, 1, 1] and lungs["assd_px"].tolist() == [0, 0, 0]
    # The box of both lungs holds the heart too: 256 true pixels, 36 more found.
    assert table["dsc"][0] == pytest.approx(2 * 256 / (256 + 292))
    assert table["truth_area_px"][0] == 256 and table["prediction_area_px"][0] == 292
    assert set(table["status"]) == {"ok"} and set(table["empty"]) == {"no"}


def test_rows_carry_what_later_steps_need(records: list[Record]) -> None:
    table = evaluate_cases(Threshold(name="peer"), records, ["left_lung", "heart"])
    first, second = table.iloc[0], table.iloc[2]
    assert (first["model"], first["box"], first["altered"]) == ("peer", "oracle", "as-read")
    assert (first["source"], first["label"], first["patient"]) == ("set", "normal", "p")
    assert second["label"] is None
    assert (first["height"], first["width"], first["boxes_in_call"]) == (H, W, 2)
    assert [first[f"box_{edge}"] for edge in ("x0", "y0", "x1", "y1")] == [3, 4, 10, 19]
    assert first["score"] == pytest.approx(0.5) and first["seconds"] >= 0
    # Millimetres only where the spacing is known: 128 pixels of 0.25 mm².
    assert first["truth_area_mm2"] == 32 and first["hd95_mm"] == 0
    assert np.isnan(second["truth_area_mm2"]) and np.isnan(second["hd95_mm"])
    assert (first["truth_components"], first["prediction_components"]) == (1, 1)
    assert set(METRICS) <= set(table.columns)


def test_the_cardiothoracic_ratio_stands_on_the_heart(records: list[Record]) -> None:
    table = evaluate_cases(Threshold(), records[:1], ["left_lung", "right_lung", "heart"])
    assert table["ctr_truth"].isna().tolist() == [True, True, False]
    assert table["ctr_truth"][2] == 6 / 24 and table["ctr_prediction"][2] == 6 / 24
    alone = evaluate_cases(Threshold(), records[:1], ["heart"])
    assert alone["ctr_truth"].isna().all()


def test_an_image_is_shown_to_the_model_once(records: list[Record]) -> None:
    model = Threshold()
    evaluate_cases(model, records, ["lung", "heart"])
    assert model.calls == 1 + len(records)  # and the probe
    assert model.boxes[1].shape == (2, 4)


def test_automatic_boxes_come_from_the_models_own_first_mask(records: list[Record]) -> None:
    model = Threshold()
    table = evaluate_cases(model, records, ["lung"], "automatic")
    # After the probe, each image is asked twice: as a whole, then with what was found.
    asked = model.boxes[-2 * len(records) :]
    assert all(box.tolist() == [[0, 0, W, H]] for box in asked[::2])
    assert set(table["box"]) == {"automatic"} and table["dsc"].min() > 0.9
    edges = table[[f"box_{edge}" for edge in ("x0", "y0", "x1", "y1")]]
    np.testing.assert_array_equal(edges, np.concatenate(asked[1::2]))


def test_whole_image_is_one_box_for_all_targets(records: list[Record]) -> None:
    model = Threshold()
    table = evaluate_cases(model, records, ["lung", "heart"], "whole")
    assert [box.tolist() for box in model.boxes[1:]] == [[[0, 0, W, H]]] * 3
    assert set(table["box"]) == {"whole-image"} and set(table["boxes_in_call"]) == {1}
    assert table.loc[0, ["box_x0", "box_y0", "box_x1", "box_y1"]].tolist() == [0, 0, W, H]
    assert table["prediction_area_px"].tolist() == [292] * 6


def test_jitter_is_in_the_name_and_repeats(records: list[Record]) -> None:
    tables = [evaluate_cases(Threshold(), records, ["lung"], 4, seed=s) for s in (0, 0, 1)]
    assert set(tables[0]["box"]) == {"oracle+jitter4"}
    assert tables[0]["box_x0"].tolist() == tables[1]["box_x0"].tolist()
    assert tables[0]["box_x0"].tolist() != tables[2]["box_x0"].tolist()


def test_threads_do_not_change_the_table(records: list[Record]) -> None:
    one, four = (
        evaluate_cases(Threshold(), records, ["lung", "heart"], jobs=jobs) for jobs in (1, 4)
    )
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), four.drop(columns="seconds"))


def test_empty_masks_are_stated(records: list[Record], tmp_path: Path) -> None:
    nothing = write(tmp_path / "nothing.png", np.zeros((H, W), bool))
    bare = dataclasses.replace(records[1], masks={**records[1].masks, "heart": nothing})
    table = evaluate_cases(Threshold(), [records[0], bare], ["heart"])
    assert table["status"].tolist() == ["ok", NO_BOX]
    assert table["empty"].tolist() == ["no", "truth"]
    assert np.isnan(table["dsc"][1]) and pd.isna(table["prediction_area_px"][1])
    whole = evaluate_cases(Threshold(), [records[0], bare], ["heart"], "whole")
    assert whole["empty"].tolist() == ["no", "truth"] and whole["dsc"][1] == 0
    blind = evaluate_cases(Threshold(255), [records[0], bare], ["heart"], "whole", tmp_path / "o")
    assert blind["empty"].tolist() == ["prediction", "both"]
    assert blind["dsc"].tolist() == [0, 1] and blind["hd95_px"].tolist() == [40, 0]
    told = json.loads((tmp_path / "o" / "cases.json").read_text())
    assert told["empty"] == {"prediction": 1, "both": 1}


def test_a_truth_of_another_size_is_resized_and_said_so(
    records: list[Record], tmp_path: Path
) -> None:
    small = np.zeros((H // 2, W // 2), bool)
    small[2:10, 2:5] = True
    path = write(tmp_path / "small.png", small)
    other = Record("set/x", "set", records[0].image, {"lung": path})
    table = evaluate_cases(Threshold(), [records[0], other], ["lung"], out=tmp_path / "o")
    assert table["truth_resized"].tolist() == [0, 1]
    assert json.loads((tmp_path / "o" / "cases.json").read_text())["truth_resized"] == 1


def test_records_without_the_target_are_counted(records: list[Record], tmp_path: Path) -> None:
    only_heart = dataclasses.replace(records[1], masks={"heart": records[1].masks["heart"]})
    unlabelled = dataclasses.replace(records[2], masks={})
    given = [records[0], only_heart, unlabelled]
    table = evaluate_cases(Threshold(), given, ["lung", "heart"], out=tmp_path)
    assert table["id"].tolist() == ["set/a", "set/a", "set/b"]
    told = json.loads((tmp_path / "cases.json").read_text())
    assert told["without_target"] == {"lung": 2, "heart": 1}


def test_files_hold_what_was_returned(records: list[Record], tmp_path: Path) -> None:
    table = evaluate_cases(Threshold(), records, ["lung"], out=tmp_path, save_masks=True)
    pd.testing.assert_frame_equal(read_cases(tmp_path), table)
    assert len(pd.read_csv(tmp_path / "cases.csv")) == 3
    assert not (tmp_path / "cases.partial.jsonl").exists()
    saved = np.asarray(Image.open(mask_path(tmp_path, "set/b", "lung")))
    assert saved.dtype == bool and saved.sum() == table["prediction_area_px"][1]


class StopError(Exception):
    pass


def stopping_at(count: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, what: str) -> None:
        if done == count:
            raise StopError

    return progress


def test_goes_on_where_it_stopped(records: list[Record], tmp_path: Path) -> None:
    first = Threshold()
    with pytest.raises(StopError):
        evaluate_cases(first, records, ["lung"], out=tmp_path, jobs=1, progress=stopping_at(2))
    assert not (tmp_path / "cases.parquet").exists()
    second, seen = Threshold(), []
    table = evaluate_cases(
        second, records, ["lung"], out=tmp_path, progress=lambda *a: seen.append(a)
    )
    assert second.calls == 1 + 1 and seen == [(3, 3, "set/c")]
    whole = evaluate_cases(Threshold(), records, ["lung"])
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), whole.drop(columns="seconds"))


def test_a_finished_table_is_returned_only_to_what_made_it(
    records: list[Record], tmp_path: Path
) -> None:
    made = evaluate_cases(Threshold(), records, ["lung"], out=tmp_path)
    again = Threshold()
    pd.testing.assert_frame_equal(evaluate_cases(again, records, ["lung"], out=tmp_path), made)
    assert again.calls == 1  # the probe

    def refused(told: str, *args: Any, **options: Any) -> None:
        with pytest.raises(DataError, match=told):
            evaluate_cases(*args, out=tmp_path, **options)

    # Other weights under the same name, another box, target, manifest, label, origin.
    refused("probe", Threshold(150), records, ["lung"])
    refused('box: "oracle" there, "whole-image" now', Threshold(), records, ["lung"], "whole")
    refused("targets", Threshold(), records, ["heart"])
    refused("records: 3 there, 2 now", Threshold(), records[:2], ["lung"])
    renamed = [dataclasses.replace(records[0], label="ill"), *records[1:]]
    refused("manifest", Threshold(), renamed, ["lung"])
    refused("provenance", Threshold(), records, ["lung"], provenance={"weights": "1234"})
    refused("masks_saved", Threshold(), records, ["lung"], save_masks=True)
    # A file that changed, though its path did not.
    write(records[0].image, np.full((H, W), 50, np.uint8) + np.eye(H, W, dtype=np.uint8))
    refused("manifest", Threshold(), records, ["lung"])
    anew = evaluate_cases(Threshold(), records, ["lung"], out=tmp_path, resume=False)
    assert anew["dsc"][0] == 0
    assert evaluate_cases(Threshold(), records, ["lung"], out=tmp_path)["dsc"][0] == 0


def test_an_alteration_is_named_and_moves_the_truth_with_the_image(
    records: list[Record],
) -> None:
    flip = Alteration("flip", lambda image, rng: image[:, ::-1].copy(), lambda m: m[:, ::-1])
    table = evaluate_cases(Threshold(), records, ["left_lung"], alteration=flip)
    assert table["dsc"].tolist() == [1, 1, 1] and set(table["altered"]) == {"flip"}
    assert table["box_x0"][0] == W - 11
    noise = Alteration("noise", lambda image, rng: image + rng.integers(0, 9, image.shape))
    assert evaluate_cases(Threshold(), records, ["left_lung"], alteration=noise)["dsc"][0] == 1
    turn = Alteration("turn", lambda image, rng: np.rot90(image).copy())
    with pytest.raises(DataError, match="give the alteration a mask function"):
        evaluate_cases(Threshold(), records, ["lung"], alteration=turn)


def wrong(change: Callable[[Prediction], Prediction]) -> Threshold:
    class Wrong(Threshold):
        def predict(self, image: Any, boxes_xyxy_original: Any) -> Prediction:
            return change(super().predict(image, boxes_xyxy_original))

    return Wrong()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: dataclasses.replace(p, masks=p.masks[:, :-1]), r"bool of \(1, 24, 32\)"),
        (lambda p: dataclasses.replace(p, masks=p.masks.astype(float)), "float64 masks"),
        (lambda p: dataclasses.replace(p, masks=np.repeat(p.masks, 2, 0)), r"\(2, 24, 32\)"),
        (lambda p: dataclasses.replace(p, scores=p.scores[:0]), r"is needed"),
        (
            lambda p: dataclasses.replace(p, boxes_xyxy_original=p.boxes_xyxy_original[:, None]),
            r"scores and boxes of \(\(1,\), \(1, 1, 4\)\)",
        ),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(
    records: list[Record], change: Callable[[Prediction], Prediction], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        evaluate_cases(wrong(change), records, ["lung"])


def test_what_cannot_be_evaluated_is_refused_before_anything_runs(
    records: list[Record], tmp_path: Path
) -> None:
    model = Threshold()

    def refused(told: str, *args: Any, **options: Any) -> None:
        with pytest.raises(DataError, match=told):
            evaluate_cases(model, *args, **options)

    refused("1 ids are listed twice, the first is 'set/a'", [*records, records[0]], ["lung"])
    refused("gives a lungs mask; they give .*left_lung", records, ["lungs"])
    refused("each once", records, ["lung", "lung"])
    refused("name some of", records, [])
    refused("none of the 3 records gives a infection mask", records, ["lung", "infection"])
    gone = dataclasses.replace(records[1], image=tmp_path / "gone.png")
    refused("1 of 9 files do not exist: .*gone.png", [records[0], gone, records[2]], ["lung"])
    refused("save_masks needs a folder", records, ["lung"], save_masks=True)
    assert model.calls == 0


def test_a_broken_image_stops_the_run_by_name(records: list[Record], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(records[0].image.read_bytes()[:60])
    bad = dataclasses.replace(records[2], image=broken)
    with pytest.raises(DataError, match=r"broken\.png"):
        evaluate_cases(Threshold(), [*records[:2], bad], ["lung"], out=tmp_path / "o")
