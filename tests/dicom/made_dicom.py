"""Radiographs as DICOM files, and results of them, made for tests."""

from io import BytesIO
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from adalora_qat.imaging.memory_file import MemoryFile
from adalora_qat.phantom.phantom import phantom
from adalora_qat.runtime.input_check import Caution
from adalora_qat.runtime.result import Result

H, W = 96, 80
MODEL = {"file": "made.onnx", "sha256": "ab" * 32, "engine": "onnxruntime"}


def radiograph(number: int = 1, **changes: Any) -> Dataset:
    """Return a plain DX-like CR image; ``changes`` replace attributes, None removes one."""
    bits = changes.pop("bits", 12)
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made.SOPClassUID = uid.ComputedRadiographyImageStorage
    made.SOPInstanceUID, made.SeriesInstanceUID = f"1.2.3.{number}", f"1.2.4.{number}"
    made.StudyInstanceUID, made.Modality = f"1.2.5.{number}", "CR"
    made.PatientName, made.PatientID = "Phantom^Test", "P-4711"
    made.PatientBirthDate, made.PatientSex = "19700101", "F"
    made.StudyDate, made.StudyTime, made.StudyID = "20260102", "101500", "S1"
    made.AccessionNumber, made.ReferringPhysicianName = "A1", "Ward^One"
    made.Manufacturer, made.InstanceNumber = "Maker", 3
    made.BodyPartExamined, made.ViewPosition = "CHEST", "PA"
    made.PatientOrientation, made.PixelSpacing = ["L", "F"], [0.5, 0.5]
    made.Rows, made.Columns, made.SamplesPerPixel = H, W, 1
    made.BitsAllocated = 8 if bits == 8 else 16
    made.BitsStored, made.HighBit, made.PixelRepresentation = bits, bits - 1, 0
    made.PhotometricInterpretation = "MONOCHROME2"
    pixels = np.linspace(0, 2**bits - 1, H * W).reshape(H, W)
    made.PixelData = pixels.astype(np.uint8 if bits == 8 else np.uint16).tobytes()
    for keyword, value in changes.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def file_of(dataset: Dataset, name: str = "made.dcm") -> MemoryFile:
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return MemoryFile(name, stream.getvalue())


def chest(number: int = 1, **changes: Any) -> bytes:
    """Return a DICOM file with a phantom's chest."""
    grey = phantom(number, 256).image
    scaled = grey.astype(np.uint16) * 16
    made = radiograph(number, **changes)
    made.Rows, made.Columns = scaled.shape
    made.PixelData = scaled.tobytes()
    return file_of(made).data


def result(**changes: Any) -> Result:
    """Return a result of two lungs, neither symmetric in any direction, and a heart."""
    masks = np.zeros((3, H, W), bool)
    masks[0, 10:70, 50:70] = masks[1, 15:60, 8:30] = masks[2, 50:75, 30:55] = True
    masks[0, 12, 71] = masks[1, 17, 5] = True
    values: dict[str, Any] = {
        "name": "made.dcm",
        "image": np.arange(H * W, dtype=np.uint16).reshape(H, W),
        "masks": masks,
        "boxes": np.array([[0, 0, W, H]] * 3, np.float32),
        "scores": np.array([0.9, 0.8, 0.7], np.float32),
        "confidence": 0.8,
        "confidence_means": "expected IoU",
        "warnings": (Caution("rotated", "looks rotated by 90 degrees", 0.9, 0.5),),
        "prompt": "automatic",
        "spacing_mm": (0.5, 0.5),
        "seconds": {"read": 0.0, "predict": 0.0},
        "model": MODEL,
        "structures": ("left_lung", "right_lung", "heart"),
    }
    return Result(**{**values, **changes})
