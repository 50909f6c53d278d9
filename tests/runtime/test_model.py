"""Calling a model: prompts, many images, threads, memory, errors."""

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_toy import toy_metadata, write_new_toy, write_toy
from PIL import Image

from adalora_qat.errors import CheckpointError, ConfigError, DataError
from adalora_qat.imaging.automatic_prompt import predict_automatically
from adalora_qat.runtime.model import NO_BOX_TRAINING, Model, load
from adalora_qat.runtime.onnx_predictor import OnnxPredictor
from adalora_qat.runtime.packaged import MODEL, weights_folder
from adalora_qat.runtime.result import Failure, Result

packaged = pytest.mark.skipif(
    not (weights_folder() / MODEL).is_file(), reason="this version of the package holds no model"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_toy(folder / "toy.onnx")
    write_new_toy(folder / "new.onnx")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder / "toy.onnx", threads=1)


@pytest.fixture(scope="module")
def new(folder: Path) -> Model:
    return load(folder / "new.onnx", threads=1)


def picture(height: int = 32, width: int = 64, seed: int = 0) -> np.ndarray:
    """Noise, brighter on the left half."""
    image = np.random.default_rng(seed).integers(0, 60, (height, width), dtype=np.uint8)
    image[:, : width // 2] += 150
    return image


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{seed}.png" for seed in range(12)]
    for seed, path in enumerate(made):
        Image.fromarray(picture(seed=seed)).save(path)
    return made


def test_without_a_box_the_model_finds_one(model: Model, folder: Path) -> None:
    image = picture()
    result = model(image)
    expected = predict_automatically(OnnxPredictor(folder / "toy.onnx"), image)
    np.testing.assert_array_equal(result.masks, expected.masks)
    np.testing.assert_array_equal(result.boxes, expected.boxes_xyxy_original)
    # Not the whole image: the bright half, to one pixel of the low-resolution grid.
    assert result.prompt == "automatic" and result.boxes[0, 2] < 40
    np.testing.assert_array_equal(result.mask, result.masks[0])


def test_boxes_give_a_mask_each(model: Model) -> None:
    boxes = [[0, 0, 20, 20], [10, 5, 64, 32]]
    result = model(picture(), boxes=boxes)
    assert result.masks.shape == (2, 32, 64) and result.prompt == "box"
    np.testing.assert_array_equal(result.boxes, boxes)
    np.testing.assert_array_equal(result.mask, result.masks[0] | result.masks[1])
    one = model(picture(), box=boxes[1])
    np.testing.assert_array_equal(one.masks[0], result.masks[1])
    np.testing.assert_array_equal(one.scores, result.scores[1:])


def test_a_plain_export_says_that_it_is_not_calibrated(model: Model) -> None:
    result = model(picture(), box=(4, 2, 60, 30))
    assert result.confidence is None and result.warnings == ()
    assert "not calibrated" in result.confidence_means


def test_one_file_takes_every_prompt(model: Model, new: Model) -> None:
    image = picture()
    for prompt in ({}, {"box": (4, 2, 60, 30)}, {"boxes": [[4, 2, 60, 30], [0, 0, 9, 9]]}):
        ours, whole = new(image, **prompt), model(image, **prompt)  # type: ignore[arg-type]
        np.testing.assert_array_equal(ours.masks, whole.masks)
        np.testing.assert_array_equal(ours.boxes, whole.boxes)
    pointed = new(image, points=[[20, 10], [60, 10]], labels=[1, 0])
    assert pointed.prompt == "points" and pointed.masks.shape == (1, 32, 64)
    np.testing.assert_array_equal(pointed.boxes, [[0, 0, 64, 32]])
    assert pointed.scores[0] == pytest.approx(0.1)  # x in the model frame / 100
    both = new(image, points=[20, 10] * np.ones((1, 2)), box=(4, 2, 60, 30))
    np.testing.assert_array_equal(both.boxes, [[4, 2, 60, 30]])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"box": (0, 0, 1, 1), "boxes": [[0, 0, 1, 1]]}, "not both"),
        ({"box": (0, 0, 1)}, "four finite numbers"),
        ({"box": "left"}, "four finite numbers"),
        ({"box": [[0, 0, 1, 1], [0, 0, 2, 2]]}, "four finite numbers"),
        ({"box": (0, 0, 65, 20)}, "outside the image of 64x32"),
        ({"boxes": []}, "four finite numbers"),
        ({"boxes": np.zeros((0, 4))}, "no box given"),
        ({"labels": [1]}, "give points, too"),
        ({"points": [[1, 1]], "boxes": [[0, 0, 9, 9]]}, "one object"),
        ({"points": [[np.nan, 1]]}, "points"),
        ({"points": [[1, 1]], "labels": [1, 0]}, r"give \(T, 2\) and \(T,\)"),
        ({"points": [[70, 1]]}, "outside the image"),
        ({"spacing_mm": (0.1, np.inf)}, "spacing_mm"),
        ({"spacing_mm": (0.1, 0)}, "spacing_mm"),
        ({"spacing_mm": (0.1,)}, "spacing_mm"),
    ],
)
def test_prompts_that_cannot_be_used(new: Model, prompt: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        new(picture(), **prompt)


def test_many_boxes_give_what_each_gives_alone(model: Model, new: Model) -> None:
    boxes = [[x % 60, x // 60, 64, 32] for x in range(70)]
    for one in (model, new):
        together = one(picture(), boxes=boxes)
        assert together.masks.shape == (70, 32, 64)
        for index in (0, 15, 16, 39, 63, 64, 69):
            alone = one(picture(), box=boxes[index])
            np.testing.assert_array_equal(together.masks[index], alone.masks[0])
            assert together.scores[index] == alone.scores[0]
            np.testing.assert_array_equal(together.boxes[index], alone.boxes[0])
        with pytest.raises(DataError, match="10001 boxes for one image"):
            one(picture(), boxes=np.tile([0, 0, 9, 9], (10_001, 1)))


def test_a_file_of_an_earlier_version_takes_no_points(model: Model) -> None:
    with pytest.raises(
        DataError, match=r"toy\.onnx takes boxes, no points; export its model again"
    ):
        model("not even read.png", points=[[1, 1]])


def test_errors_name_the_file(model: Model, tmp_path: Path) -> None:
    flat = tmp_path / "flat.png"
    Image.fromarray(picture()).save(flat)
    with pytest.raises(DataError, match=r"flat\.png: box .* outside"):
        model(flat, box=(0, 0, 99, 9))
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        model(tmp_path / "none.png")
    with pytest.raises(DataError, match=r"^the image is of one colour"):
        model(np.zeros((9, 9), np.uint8))


def test_files_that_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.onnx does not exist"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ConfigError, match="threads=0"):
        load(folder / "toy.onnx", threads=0)
    foreign = write_toy(tmp_path / "foreign.onnx")
    plain = onnx.load(foreign)
    del plain.metadata_props[:]
    onnx.save(plain, foreign)
    with pytest.raises(CheckpointError, match="metadata is missing"):
        load(foreign)


def test_a_model_says_what_it_is(model: Model) -> None:
    assert model.name == "toy" and model.metadata == toy_metadata()
    assert "toy.onnx" in repr(model)


def test_four_threads_get_what_one_gets(model: Model) -> None:
    images = [picture(40, 50 + seed, seed) for seed in range(16)]
    alone = [model(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(model, images))
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one.masks, other.masks)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_map_gives_what_calls_give_in_order(model: Model, paths: list[Path]) -> None:
    images = [paths[0], picture(seed=40), Image.fromarray(picture(seed=41)), *map(str, paths[1:])]
    results = list(model.map(iter(images), spacing_mm=(0.5, 0.5)))
    assert len(results) == len(images)
    for image, result in zip(images, results, strict=True):
        expected = model(image, spacing_mm=(0.5, 0.5))
        np.testing.assert_array_equal(result.masks, expected.masks)
        np.testing.assert_array_equal(result.boxes, expected.boxes)
        assert result.name == expected.name and result.spacing_mm == (0.5, 0.5)


def test_map_takes_boxes_for_each_image(model: Model, paths: list[Path]) -> None:
    boxes = [(4, 2, 60, 30), None, [[0, 0, 9, 9], [5, 5, 20, 20]]]
    results = list(model.map(paths[:3], boxes=boxes))
    assert [result.prompt for result in results] == ["box", "automatic", "box"]
    assert [len(result.masks) for result in results] == [1, 1, 2]
    with pytest.raises(DataError, match=r"no entry for images\[2\]"):
        list(model.map(paths[:3], boxes=boxes[:2]))
    with pytest.raises(DataError, match="more entries"):
        list(model.map(paths[:3], boxes=[*boxes, None]))


def test_map_reads_no_further_ahead_than_it_is_told(model: Model, paths: list[Path]) -> None:
    taken: list[Path] = []

    def noted() -> Iterator[Path]:
        for path in paths:
            taken.append(path)
            yield path

    for done, _ in enumerate(model.map(noted(), ahead=3), start=1):
        assert len(taken) <= done + 3
    assert taken == paths
    with pytest.raises(ConfigError, match="ahead=0"):
        model.map(paths, ahead=0)


def test_closing_map_stops_its_threads(model: Model, paths: list[Path]) -> None:
    def readers() -> list[str]:
        names = (thread.name for thread in threading.enumerate())
        return [name for name in names if name.startswith("adalora-qat-read")]

    results = model.map(cycle(paths))
    next(results)
    assert readers()
    results.close()
    assert not readers()
    list(model.map(paths))
    assert not readers()


def test_an_error_in_map_names_the_image_and_ends_it(model: Model, paths: list[Path]) -> None:
    paths[2].write_bytes(paths[2].read_bytes()[:70])
    results = model.map(paths)
    assert [next(results).name, next(results).name] == ["0.png", "1.png"]
    with pytest.raises(DataError, match=r"2\.png"):
        next(results)
    assert list(results) == []
    blank = np.zeros((9, 9), np.uint8)
    with pytest.raises(DataError, match=r"images\[1\]: the image is of one colour"):
        list(model.map([picture(), blank]))
    with pytest.raises(DataError, match=r"images\[0\]: an image of type int"):
        list(model.map([3]))  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"images\[0\]: box"):
        list(model.map([picture()], boxes=["left"]))  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"3\.png: box"):
        list(model.map([paths[3]], boxes=["left"]))  # type: ignore[list-item]


def test_map_may_return_failures_in_their_places(model: Model, paths: list[Path]) -> None:
    paths[1].write_bytes(b"")
    images = [paths[0], paths[1], np.zeros((9, 9), np.uint8), paths[2], paths[3]]
    boxes = [None, None, None, (0, 0, 99, 9), None]
    found = list(model.map(images, boxes=boxes, errors="return"))
    kinds = [type(one) for one in found]
    assert kinds == [Result, Failure, Failure, Failure, Result]
    failures = [one for one in found if isinstance(one, Failure)]
    assert [(one.source, one.place) for one in failures] == [
        (str(paths[1]), 1),
        (None, 2),
        (str(paths[2]), 3),
    ]
    for failure, word in zip(failures, (r"1\.png", "one colour", "outside"), strict=True):
        assert failure.error == str(failure.cause)
        with pytest.raises(DataError, match=word):
            raise failure.cause
    with pytest.raises(ConfigError, match="errors='skip'"):
        model.map(paths, errors="skip")  # type: ignore[call-overload]


def test_a_model_that_needs_boxes_says_so(tmp_path: Path) -> None:
    for known in (True, False):
        file = write_toy(tmp_path / f"{known}.onnx", toy_metadata(automatic_prompt=known))
        one = load(file, threads=1)
        codes = [] if known else [NO_BOX_TRAINING]
        assert [caution.code for caution in one(picture()).warnings] == codes
        assert one(picture(), box=(0, 0, 9, 9)).warnings == ()


def test_no_area_where_no_chest_can_be_of_that_size(tmp_path: Path) -> None:
    file = write_toy(tmp_path / "lung.onnx", toy_metadata(structures=("lung",)))
    lungs, other = load(file, threads=1), load(write_toy(tmp_path / "any.onnx"), threads=1)
    facts = lungs(picture(), spacing_mm=(0.1, 0.1)).to_json()
    assert [warning["code"] for warning in facts["warnings"]] == ["spacing_implausible"]
    assert facts["area_mm2"] is None and facts["objects"][0]["area_mm2"] is None
    assert facts["area_px"] > 0
    assert lungs(picture(), spacing_mm=(5, 5)).to_json()["area_mm2"] > 0
    assert other(picture(), spacing_mm=(0.1, 0.1)).to_json()["area_mm2"] > 0
    assert lungs(picture(), spacing_mm=(0.1, 0.1), box=(0, 0, 9, 9)).warnings == ()


def test_map_keeps_no_result(model: Model, paths: list[Path]) -> None:
    results = model.map(paths)
    seen = [weakref.ref(next(results)) for _ in range(6)]
    assert all(kept() is None for kept in seen[:-1])


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("which", "count", "side"),
    [("toy", 1000, 512), pytest.param("packaged", 30, 1024, marks=packaged)],
)
def test_memory_stays_flat_over_many_images(
    which: str, count: int, side: int, model: Model, tmp_path: Path
) -> None:
    used = model if which == "toy" else load(threads=1)
    paths = [tmp_path / f"{seed}.png" for seed in range(8)]
    for seed, path in enumerate(paths):
        Image.fromarray(picture(side, side, seed)).save(path)
    warm = count // 5
    before = done = 0.0
    for done, result in enumerate(used.map(islice(cycle(paths), count)), start=1):
        assert result.mask.shape == (side, side)
        if done == warm:
            before = resident_mb()
    assert done == count
    # One kept image and its mask are 0.5 MB (toy) or 2 MB: all that come after the first fifth
    # 400 MB or 48 MB.
    assert resident_mb() - before < 24
