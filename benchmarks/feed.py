"""How fast training samples are made now and at an earlier commit, in turns in one run.

    git worktree add ../base COMMIT
    python benchmarks/feed.py --base ../base --data data --recipe litemedsam-chest

``--data`` is a folder that ``prepare`` wrote; without it phantoms stand in. Figures are images
per second of processor time of one thread, and, with ``--workers``, images per second through
the training feed while the thread that trains is busy in Python, as it is beside a GPU: by
threads, and by processes where the commit has them. The recipe is this commit's: what an earlier
one does not know of it is left out there.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from _machine import describe_machine

BATCH = 16
_BUSY_S = 0.008


def samples(arguments: argparse.Namespace, side: int | None) -> Any:
    """Return the training data set of a recipe, its planes kept in memory-mapped files."""
    from dataclasses import replace as replaced

    from adalora_qat.corpus.sources import read_source
    from adalora_qat.corpus.splits import read_manifest, records_of
    from adalora_qat.model.sam import VARIANTS
    from adalora_qat.phantom.phantom import write_phantoms
    from adalora_qat.samples.cache import PlaneCache
    from adalora_qat.samples.dataset import SegmentationDataset
    from adalora_qat.samples.structures import usable, wanted

    config = known_part(arguments.recipe)
    structures = config.model.structures
    if arguments.data is None:
        folder = arguments.work / "phantoms"
        if not folder.exists():
            write_phantoms(folder, 64, seed=0, side=512)
        records = read_source("phantom", folder).records
    else:
        records = records_of(read_manifest(arguments.data), "train")
    records = usable(records, config.data.prompt.targets, structures)
    frame = VARIANTS[config.model.variant].frame
    frame = replaced(frame, side=side) if side else frame
    cache = PlaneCache(arguments.work / "cache", frame.side)
    for names in {wanted(r, structures) if structures else config.data.prompt.targets: None
                  for r in records}:  # fmt: skip
        some = [r for r in records if not structures or wanted(r, structures) == names]
        cache.build(some, names, workers=2)
    return SegmentationDataset(
        records, config.data, frame, train=True, cache=cache, structures=structures
    )


def known_part(recipe: str) -> Any:
    """Return a recipe without augmentations that the imported package does not have."""
    import yaml

    from adalora_qat.config import AugmentConfig
    from adalora_qat.recipe import load_config

    text = Path(__file__).parents[1] / f"src/adalora_qat/recipes/{recipe}.yaml"
    given = yaml.safe_load(text.read_text())["data"]["augment"]
    kept = {name: value for name, value in given.items() if name in AugmentConfig.model_fields}
    return load_config(recipe, [f"data.augment.{name}={value}" for name, value in kept.items()])


def alone(dataset: Any, seconds: float) -> float:
    """Return images per second of processor time, made by one thread."""
    from adalora_qat.samples.dataset import collate

    first, drawn, started = 0, 0, 0.0
    begun = None
    while begun is None or time.perf_counter() - begun < seconds:
        indices = [(first + 7 * step) % len(dataset) for step in range(BATCH)]
        collate([dataset[index] for index in indices])
        first += 7 * BATCH
        if first >= 7 * 4 * BATCH and begun is None:
            begun, started, drawn = time.perf_counter(), time.process_time(), 0
        drawn += BATCH
    return (drawn - BATCH) / (time.process_time() - started)


def fed(dataset: Any, seconds: float, workers: int, **how: bool) -> float:
    """Return images per second through the feed, beside a thread that is busy."""
    import torch

    from adalora_qat.train.feed import Feed
    from adalora_qat.train.sampling import plan_epoch

    feed, device = Feed(dataset, workers=workers, **how), torch.device("cpu")
    drawn, epoch, begun = 0, 0, None
    while True:
        epoch += 1
        plan = [m for step in plan_epoch(len(dataset), BATCH, seed=0, epoch=epoch) for m in step]
        feed.begin(epoch, plan, device)
        for number, micro in enumerate(plan):
            drawn += len(feed.batch(micro, device)[1])
            until = time.perf_counter() + _BUSY_S
            while time.perf_counter() < until:
                pass
            if begun is None and number > 2 * workers:
                begun, drawn = time.perf_counter(), 0
            if begun is not None and time.perf_counter() - begun > seconds:
                return drawn / (time.perf_counter() - begun)


def child(arguments: argparse.Namespace) -> None:
    """Measure the imported package and print one line of JSON."""
    import cv2
    import torch

    from adalora_qat.train.feed import Feed

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    dataset = samples(arguments, arguments.side)
    found = {"one core": alone(dataset, arguments.seconds)}
    for workers in arguments.workers:
        found[f"{workers} threads"] = fed(dataset, arguments.seconds, workers)
        if "processes" in inspect.signature(Feed).parameters:
            found[f"{workers} processes"] = fed(dataset, arguments.seconds, workers, processes=True)
    print(json.dumps(found), flush=True)
    os._exit(0)  # what was made ahead is not waited for


def measured(source: Path, work: Path) -> dict[str, float]:
    """Run this file on another source tree."""
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--work", str(work)],
        env={**os.environ, "PYTHONPATH": f"{source.resolve() / 'src'}"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure both trees in turns and write medians and all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="a work tree of the earlier commit")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--recipe", default="litemedsam-chest")
    parser.add_argument("--side", type=int)
    parser.add_argument("--workers", type=int, nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/speed/feed.json"))
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        child(arguments)
    here = Path(__file__).parents[1]
    trees = {"before": arguments.base, "now": here} if arguments.base else {"now": here}
    rounds: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in trees}
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as work:
        for _ in range(arguments.rounds):
            for name, tree in trees.items():
                for way, rate in measured(tree, Path(work)).items():
                    rounds[name][way].append(round(rate, 1))
                print(name, json.dumps(rounds[name]), flush=True)
    rows = {n: {way: median(each) for way, each in ways.items()} for n, ways in rounds.items()}
    run = {
        "command": " ".join(["python", "benchmarks/feed.py", *sys.argv[1:]]),
        "recipe": arguments.recipe,
        "data": "real radiographs" if arguments.data else "phantoms",
        "batch": BATCH,
        "base": _commit_of(arguments.base),
        "load_before": load_before,
        "images_per_second": rows,
        "rounds": rounds,
        "machine": describe_machine(),
    }
    known = json.loads(arguments.out.read_text())["runs"] if arguments.out.exists() else []
    kept = [each for each in known if each["command"] != run["command"]]
    from adalora_qat.files import write_json

    what = "images/s of training samples: of one core's time, and through the feed"
    write_json(arguments.out, {"what": what, "runs": [*kept, run]})
    print(json.dumps(rows, indent=1))


def _commit_of(tree: Path | None) -> str | None:
    if tree is None:
        return None
    asked = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
