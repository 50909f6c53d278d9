import sys
from pathlib import Path

import pytest

pytest.importorskip("highdicom", reason="the extra [dicom] is not installed")
# Made radiographs are shared by the files of this folder.
sys.path.insert(0, str(Path(__file__).parent))

from adalora_qat import Model, load


@pytest.fixture(scope="session")
def model() -> Model:
    return load(threads=1)
