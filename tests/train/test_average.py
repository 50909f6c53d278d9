"""The average of the weights: its values, its exchange, and its restart."""

from __future__ import annotations

import torch
from torch import nn

from adalora_qat.train.average import Average


def test_follows_the_formula() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    average = Average({"w": parameter}, decay=0.9)
    expected = torch.zeros(3)
    for step in range(1, 200):
        parameter.data += 1
        average.update({"w": parameter})
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.data
    torch.testing.assert_close(average.tensors["w"], expected)


def test_stands_in_for_the_parameters_and_gives_them_back() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    average = Average({"w": parameter}, decay=0.5)
    parameter.data.fill_(3.0)
    with average.in_place_of({"w": parameter}):
        assert parameter.item() == 1.0
    assert parameter.item() == 3.0
    assert average.tensors["w"].item() == 1.0


def test_restart_begins_where_the_parameters_stand() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = Average({"w": parameter}, decay=0.5)
    average.update({"w": parameter})
    smaller = nn.Parameter(torch.tensor([5.0]))
    average.restart({"w": smaller})
    assert average.steps == 0
    assert average.tensors["w"].tolist() == [5.0]
