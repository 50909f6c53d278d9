"""An open image answers as the model does, and is encoded once."""

import io

import numpy as np
import pytest
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.imaging.memory_file import MemoryFile
from adalora_qat.phantom.phantom import phantom
from adalora_qat.runtime.model import Model, load


@pytest.fixture(scope="module")
def model() -> Model:
    return load(threads=1)


@pytest.fixture(scope="module")
def png() -> MemoryFile:
    buffer = io.BytesIO()
    Image.fromarray(phantom(3).image).save(buffer, "PNG")
    return MemoryFile("phantom.png", buffer.getvalue())


def test_each_answer_is_that_of_the_model(model: Model, png: MemoryFile) -> None:
    opened = model.open(png, spacing_mm=(0.5, 0.5))
    height, width = opened.pixels.shape[:2]
    box = [width * 0.1, height * 0.1, width * 0.9, height * 0.9]
    for prompt in ({}, {"box": box}, {"boxes": [box, box]}):
        one, other = opened(**prompt), model(png, spacing_mm=(0.5, 0.5), **prompt)
        assert np.array_equal(one.masks, other.masks)
        assert {**one.to_json(), "seconds": 0} == {**other.to_json(), "seconds": 0}


def test_further_prompts_do_not_encode(
    model: Model, png: MemoryFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    predictor = model._predictor
    inner = predictor.encode

    def noted(image: np.ndarray) -> np.ndarray:
        seen.append(1)
        return inner(image)

    monkeypatch.setattr(predictor, "encode", noted)
    opened = model.open(png)
    assert not seen
    opened()
    opened(box=[5, 5, 60, 60])
    assert len(seen) == 1


def test_bad_input_names_the_file(model: Model) -> None:
    with pytest.raises(DataError, match=r"nothing\.png"):
        model.open(MemoryFile("nothing.png", b"no image"))
