"""The feed: the same batches made ahead as made on demand, features in place of images."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adalora_qat.checkpoint import RunFolder
from adalora_qat.config import RunConfig
from adalora_qat.corpus.records import Record
from adalora_qat.imaging.geometry import Frame
from adalora_qat.samples.dataset import SegmentationDataset
from adalora_qat.train.features import Features
from adalora_qat.train.feed import Feed
from adalora_qat.train.sampling import plan_epoch
from adalora_qat.train.stages import Resources, Training

CPU = torch.device("cpu")


def dataset(config: RunConfig, records: list[Record]) -> SegmentationDataset:
    return SegmentationDataset(records, config.data, Frame(64, "minmax"), train=True)


def test_batches_made_ahead_are_those_made_on_demand(
    tiny: Callable[..., RunConfig], phantoms: list[Record]
) -> None:
    steps = [step[0] for step in plan_epoch(7, 2, seed=0, epoch=1)]
    ahead, asked = (Feed(dataset(tiny(), phantoms[:7])) for _ in range(2))
    ahead.begin(1, steps, CPU)
    asked.begin(1, [], CPU)
    for micro in steps:
        (one, ids), (two, names) = ahead.batch(micro, CPU), asked.batch(micro, CPU)
        assert ids == names
        assert one.keys() == two.keys() == {"inputs", "boxes", "masks", "valid", "weights"}
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert one["inputs"].shape == (len(ids), 3, 64, 64)


def test_processes_make_what_threads_make(
    tiny: Callable[..., RunConfig], phantoms: list[Record]
) -> None:
    config = tiny("data.augment.enabled=true")
    made = Feed(dataset(config, phantoms[:7]), workers=1, processes=True)
    here = Feed(dataset(config, phantoms[:7]), workers=1)
    for epoch in (1, 2):
        steps = [step[0] for step in plan_epoch(7, 3, seed=0, epoch=epoch)]
        made.begin(epoch, steps, CPU)
        here.begin(epoch, steps, CPU)
        kept = []
        for micro in steps:
            (one, ids), (two, names) = made.batch(micro, CPU), here.batch(micro, CPU)
            assert ids == names
            assert one.keys() == two.keys()
            assert {t.dtype for t in one.values()} == {torch.float32}
            kept.append((one, two))
        # Compared at the end: the memory they were made in has been used again since.
        assert all(torch.equal(one[name], two[name]) for one, two in kept for name in two)


def test_kept_features_take_the_place_of_images(
    tiny: Callable[..., RunConfig], phantoms: list[Record]
) -> None:
    rows = torch.arange(7.0)[:, None]
    feed = Feed(dataset(tiny(), phantoms[:7]), Features(rows))
    step = plan_epoch(7, 4, seed=0, epoch=1)[0][0]
    tensors, _ = feed.batch(step, CPU)
    assert tensors["inputs"].flatten().tolist() == list(step.indices)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_sent_what_the_cpu_has(
    tiny: Callable[..., RunConfig], phantoms: list[Record]
) -> None:
    device = torch.device("cuda")
    steps = [step[0] for step in plan_epoch(7, 2, seed=0, epoch=1)]
    there, here = (Feed(dataset(tiny(), phantoms[:7])) for _ in range(2))
    there.begin(1, steps, device)
    here.begin(1, steps, CPU)
    for micro in steps:
        one, two = there.batch(micro, device)[0], here.batch(micro, CPU)[0]
        assert all(torch.equal(one[name].cpu(), two[name]) for name in two)


def test_the_run_says_how_it_was_computed(
    tmp_path: Path, tiny: Callable[..., RunConfig], phantoms: list[Record]
) -> None:
    run = RunFolder.create(tmp_path / "run", tiny("stage1.epochs=3"))
    Training(run, phantoms[:4], phantoms[7:], Resources(cpu=True)).stage1()
    found = json.loads((run.path / "provenance.json").read_text())
    assert found["computed"] == {"stage1": {"attention": "sdpa", "compiled": None, "accumulate": 1}}
