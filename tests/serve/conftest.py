"""A model, phantoms as files, and servers that run."""

import io
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from adalora_qat.phantom.phantom import phantom
from adalora_qat.runtime.model import Model, load
from adalora_qat.serve.app import create_app
from adalora_qat.serve.settings import Settings

# Tests are imported one by one; what they share lies beside them.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def model() -> Model:
    return load(threads=1)


@pytest.fixture(scope="session")
def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(phantom(3).image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a phantom as a DICOM radiograph of 12 bits whose tags hold HTML."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    image = phantom(4, side=320).image.astype(np.uint16) * 16
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("phantom.dcm", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.Modality, dataset.PatientID = "DX", "<img src=x onerror=alert(1)>"
    dataset.PatientName = "<script>alert(1)</script>"
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelSpacing = [1.1, 1.1]
    dataset.PixelData = image.tobytes()
    path = tmp_path_factory.mktemp("dicom") / "phantom.dcm"
    dataset.save_as(path)
    assert pydicom.dcmread(path).Rows == 320
    return path


class Running:
    """A server in a thread, and a client of it."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.app = create_app(model, settings)
        config = uvicorn.Config(self.app, port=0, log_level="warning", lifespan="on")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> httpx.Client:
        self.thread.start()
        while not self.server.started:
            self.thread.join(0.02)
            assert self.thread.is_alive()
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join()


Serving = Callable[[Settings], httpx.Client]


@pytest.fixture
def serving(model: Model) -> Iterator[Serving]:
    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(Running(model, settings))


@pytest.fixture(scope="session")
def client(model: Model) -> Iterator[httpx.Client]:
    with Running(model, Settings()) as found:
        yield found
