"""What tests of the corpus share."""

from collections import Counter
from collections.abc import Callable

import pytest

from adalora_qat.corpus.reading import Reading


@pytest.fixture(scope="session")
def mask_counts() -> Callable[[Reading], dict[str, int]]:
    """Count the records that have a mask of each structure, as a file or still as text."""

    def count(reading: Reading) -> dict[str, int]:
        return dict(
            Counter(
                structure
                for record in reading.records
                for structure in (*record.masks, *getattr(record, "codes", {}))
            )
        )

    return count
