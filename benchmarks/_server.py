"""A server for benchmarks: started, watched and ended."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from adalora_qat.phantom.phantom import phantom


@contextmanager
def served(*options: str, log: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `adalora-qat serve` on a free port; give its address and process."""
    command = [sys.executable, "-m", "adalora_qat.cli", "serve", "--port", "0", *options]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1], process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(120)


def png(seed: int, side: int = 512) -> bytes:
    """Return a phantom as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(phantom(seed, side=side).image).save(buffer, "PNG")
    return buffer.getvalue()


def resident_mb(process: subprocess.Popen[str]) -> float:
    """Return how much memory a process holds."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1000
