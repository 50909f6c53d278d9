"""How fast the feed delivers batches: from files, from the cache, with augmentation.

    python benchmarks/feed_throughput.py --side 256 --count 512 --workers 0 1 2

Phantoms stand in for radiographs (JPEG of 512 px, or of the side where that is larger), so
that anyone can run it. One figure is batches of 16 drawn until ``--seconds`` have passed,
after a warm epoch: in the drawing thread alone (workers 0), through the training feed's
threads, and through the processes of PyTorch's DataLoader.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import torch
from PIL import Image
from torch.utils.data import DataLoader

from _machine import describe_machine
from adalora_qat.config import AugmentConfig, DataConfig
from adalora_qat.corpus.records import Record
from adalora_qat.files import write_json
from adalora_qat.imaging.geometry import Frame
from adalora_qat.phantom.phantom import phantom
from adalora_qat.samples.cache import PlaneCache
from adalora_qat.samples.dataset import SegmentationDataset, collate
from adalora_qat.train.feed import Feed
from adalora_qat.train.sampling import plan_epoch

BATCH = 16
# Phantoms take longer to make than to read: few of them, saved often, time the feed as well.
DIFFERENT = 16


def make_records(folder: Path, images: int, side: int) -> list[Record]:
    """Write ``images`` image files and their lung masks."""
    records = []
    made = [phantom(seed, side) for seed in range(min(images, DIFFERENT))]
    for number in range(images):
        one = made[number % len(made)]
        image, mask = folder / f"{number}.jpg", folder / f"{number}.png"
        pixels = one.image.copy()
        pixels[0, 0] = number % 256  # another file, so that it is kept on its own
        pixels[0, 1] = number // 256
        Image.fromarray(pixels).save(image, quality=95)
        Image.fromarray(one.masks["left_lung"] | one.masks["right_lung"]).save(mask)
        records.append(Record(f"bench/{number}", "bench", image, {"lung": mask}))
    return records


def drawn_alone(dataset: SegmentationDataset) -> Iterator[int]:
    """Yield the sizes of batches made by this thread, without end."""
    while True:
        for first in range(0, len(dataset) - BATCH + 1, BATCH):
            yield len(collate([dataset[index] for index in range(first, first + BATCH)]))


def by_threads(dataset: SegmentationDataset, workers: int) -> Iterator[int]:
    """Yield the sizes of batches of the feed that training uses."""
    feed, device = Feed(dataset, workers=workers), torch.device("cpu")
    for epoch in count(1):
        plan = [m for step in plan_epoch(len(dataset), BATCH, seed=0, epoch=epoch) for m in step]
        feed.begin(epoch, plan)
        for micro in plan:
            yield len(feed.batch(micro, device)[1])


def by_processes(dataset: SegmentationDataset, workers: int) -> Iterator[int]:
    """Yield the sizes of batches of a DataLoader."""
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=True,
        drop_last=True,
    )
    while True:
        yield from map(len, loader)


def rates(feed: Iterator[int], images: int, seconds: float, *, alone: bool) -> dict[str, float]:
    """Draw batches for a while; one epoch before does not count.

    The rate by this process's own processor time tells what one core gives, also on a machine
    that is busy with other things; workers' time is not in it, so it is left out with them.
    """
    for _ in range(max(1, images // BATCH)):
        next(feed)
    start, cpu_start, drawn = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        drawn += next(feed)
    found = {"images_per_second": round(drawn / (time.perf_counter() - start), 1)}
    if alone:
        found["images_per_core_second"] = round(drawn / (time.process_time() - cpu_start), 1)
    return found


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Return one row per way of feeding and number of workers."""
    frame, rows = Frame(arguments.side), []
    with tempfile.TemporaryDirectory() as name:
        records = make_records(Path(name), arguments.count, max(512, arguments.side))
        cache = PlaneCache(Path(name) / "cache", arguments.side)
        start = time.perf_counter()
        cache.build(records, ("lung",), workers=arguments.build_workers)
        build = round(len(records) / (time.perf_counter() - start), 1)
        rows.append(
            _row("cache build", arguments, arguments.build_workers, {"images_per_second": build})
        )
        augmented = DataConfig(augment=AugmentConfig(enabled=True))
        for way, config, kept in (
            ("cached", DataConfig(), cache),
            ("cached, augmented", augmented, cache),
            ("decoded at every access", DataConfig(), None),
        ):
            dataset = SegmentationDataset(records, config, frame, cache=kept)
            for workers in arguments.workers:
                feeds = (
                    {"threads": by_threads, "processes": by_processes}
                    if workers
                    else {"alone": lambda given, _: drawn_alone(given)}
                )
                for kind, feed in feeds.items():
                    found = rates(
                        feed(dataset, workers), len(records), arguments.seconds, alone=not workers
                    )
                    rows.append(_row(f"{way}, {kind}", arguments, workers, found))
                    print(json.dumps(rows[-1]), flush=True)
    return rows


def _row(
    way: str, arguments: argparse.Namespace, workers: int, found: dict[str, float]
) -> dict[str, object]:
    return {
        "way": way,
        "side": arguments.side,
        "images": arguments.count,
        "workers": workers,
        **found,
    }


def _place(run: dict[str, Any]) -> tuple[int, tuple[object, ...]]:
    return run["rows"][0]["side"], _host(run["machine"])


def _host(machine: dict[str, Any]) -> tuple[object, ...]:
    return machine["processor"], machine["cores"], machine["accelerator"]


def main() -> None:
    """Measure and add the rows to the results of other sides in the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--build-workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/data/feed.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    runs = json.loads(arguments.out.read_text())["runs"] if arguments.out.exists() else []
    load_before = os.getloadavg()[0]
    rows = measure(arguments)
    machine = describe_machine()
    runs = [run for run in runs if _place(run) != (arguments.side, _host(machine))]
    command = " ".join(["python", "benchmarks/feed_throughput.py", *sys.argv[1:]])
    runs.append(
        {"command": command, "batch": BATCH, "load_before": load_before, "rows": rows,
         "machine": machine}
    )  # fmt: skip
    write_json(arguments.out, {"what": "images/s of the training feed", "runs": runs})


if __name__ == "__main__":
    main()
