"""Load on `adalora-qat serve`: many clients, some of them bad, against `model.map` beside it.

python benchmarks/serve_load.py --out results/serve/load.json
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from _machine import describe_machine
from _server import png, resident_mb, served
from adalora_qat.files import write_json
from adalora_qat.imaging.memory_file import MemoryFile
from adalora_qat.runtime.model import load

WAITING = 16
BAD = (b"no image", png(0)[:900], b"\x89PNG\r\n\x1a\n" + bytes(40))


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--model", default=None)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    images = [png(seed) for seed in range(20)]
    model = load(given.model)
    files = [MemoryFile(f"{i}.png", data) for i, data in enumerate(images)]
    expected = [result.to_json()["area_px"] for result in model.map(files)]
    started = time.perf_counter()
    list(model.map(files * 2))
    mapped = 2 * len(files) / (time.perf_counter() - started)
    one_seconds = statistics.median(_timed(lambda: model(files[0])) for _ in range(5))

    options = ["--model", given.model] if given.model else []
    log = Path(tempfile.mkdtemp()) / "log"
    with served(*options, "--waiting", str(WAITING), log=log) as (address, process):
        alone = _alone(address, images[0])
        load_found = _load(address, process, images, expected, given.clients, given.requests)
    write_json(
        given.out,
        {
            "machine": describe_machine(),
            "clients": given.clients,
            "requests": given.requests,
            "library": {"seconds_one": round(one_seconds, 4), "map_per_second": round(mapped, 3)},
            "alone": alone,
            **load_found,
            "throughput_of_map": round(load_found["good_per_second"] / mapped, 3),
            "log_lines": len(log.read_text().splitlines()),
        },
    )


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _alone(address: str, image: bytes) -> dict[str, float]:
    with httpx.Client(base_url=address, timeout=120) as client:

        def first() -> None:
            answer = client.post(
                "/v1/segment", files={"image": ("a.png", image)}, data={"masks": "none"}
            )
            answer.raise_for_status()

        first()
        times = [_timed(first) for _ in range(7)]
        place = client.post("/v1/sessions", files={"image": ("a.png", image)}).headers["location"]
        body = {"box": [60, 60, 240, 400]}
        client.post(f"{place}/segment", json=body)
        further = [
            _timed(lambda: client.post(f"{place}/segment", json=body).raise_for_status())
            for _ in range(15)
        ]
    return {
        "first_mask_seconds": round(statistics.median(times), 4),
        "further_prompt_seconds": round(statistics.median(further), 4),
    }


def _load(
    address: str,
    process: subprocess.Popen[str],
    images: Sequence[bytes],
    expected: Sequence[int],
    clients: int,
    requests: int,
) -> dict[str, Any]:
    numbers, lock = itertools.count(), threading.Lock()
    statuses: dict[int, int] = {}
    accepted: list[float] = []
    wrong, memory = [], []

    def work() -> None:
        with httpx.Client(base_url=address, timeout=300) as client:
            while (number := next(numbers)) < requests:
                bad = number % 10 == 9
                which = number % len(images)
                data = BAD[number % len(BAD)] if bad else images[which]
                while True:
                    began = time.perf_counter()
                    answer = client.post(
                        "/v1/segment", files={"image": ("a.png", data)}, data={"masks": "none"}
                    )
                    spent = time.perf_counter() - began
                    with lock:
                        code = answer.status_code
                        statuses[code] = statuses.get(code, 0) + 1
                        if code == 200:
                            accepted.append(spent)
                            if answer.json()["area_px"] != expected[which]:
                                wrong.append(number)
                        elif code != (422 if bad else 503) and code != 503:
                            wrong.append(number)
                        if number % 50 == 0:
                            memory.append(resident_mb(process))
                    if code != 503:
                        break
                    time.sleep(float(answer.headers["retry-after"]))

    started = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    accepted.sort()
    return {
        "statuses": {str(code): count for code, count in sorted(statuses.items())},
        "unexpected_answers_or_results": len(wrong),
        "seconds": round(seconds, 1),
        "good_per_second": round(len(accepted) / seconds, 3),
        "accepted_p50_seconds": round(accepted[len(accepted) // 2], 3),
        "accepted_p99_seconds": round(accepted[int(len(accepted) * 0.99)], 3),
        "queue_bound_seconds": round((WAITING + 2) * seconds / len(accepted), 3),
        "resident_mb_first_last": [round(memory[0]), round(memory[-1])] if memory else [],
        "resident_mb_most": round(max(memory, default=0)),
    }


if __name__ == "__main__":
    main()
