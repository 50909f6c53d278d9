"""Random streams that depend on (purpose, seed, epoch, id) and on nothing else.

A sample draws the same numbers whichever worker makes it, in whatever order, and after any
restart; two purposes (prompt, augmentation) never share numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream(purpose: str, seed: int, epoch: int, sample_id: str) -> np.random.Generator:
    """Return the generator of one sample: Philox, a counter-based cipher, keyed by a hash."""
    name = "\x1f".join((purpose, str(seed), str(epoch), sample_id))
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))
