"""The real samples, and files that several tests of this room write."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real samples."""
    folder = Path(os.environ.get("ADALORA_QAT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real samples are not at {folder}; set ADALORA_QAT_DATA")
    return folder


@pytest.fixture(scope="session")
def fuzz_inputs() -> ModuleType:
    """Return the fuzzing benchmark, which also writes DICOM files in every encoding."""
    path = REPOSITORY / "benchmarks" / "fuzz_inputs.py"
    spec = importlib.util.spec_from_file_location("fuzz_inputs", path)
    if spec is None or spec.loader is None:
        pytest.skip(f"{path} is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
