"""Random streams: the same for the same sample, another for everything else."""

import itertools

from adalora_qat.samples.streams import stream


def test_a_stream_depends_on_its_four_names_alone() -> None:
    names = itertools.product(("prompt", "augment"), (0, 1), (0, 1), ("a", "b"))
    first = [stream(*name).random() for name in names]
    names = itertools.product(("prompt", "augment"), (0, 1), (0, 1), ("a", "b"))
    again = [stream(*name).random() for name in reversed(list(names))]
    assert first == again[::-1]
    assert len(set(first)) == 16


def test_names_do_not_run_into_each_other() -> None:
    assert stream("p", 1, 11, "x").random() != stream("p", 11, 1, "x").random()
    assert stream("p", 1, 1, "1x").random() != stream("p", 1, 11, "x").random()
