"""Both measures of importance, against hand-worked numbers and PEFT itself."""

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from torch import Tensor, nn

from adalora_qat.adapt.importance import SensitivitySum, SmoothedSensitivity
from adalora_qat.adapt.svd_linear import SVDLinear
from adalora_qat.errors import TrainingError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def one(lam: list[float], grad: list[float]) -> dict[str, SVDLinear]:
    adapter = SVDLinear.from_linear(nn.Linear(4, 4), len(lam))
    adapter.lam.data, adapter.lam.grad = torch.tensor(lam), torch.tensor(grad)
    return {"a": adapter}


def test_the_papers_measure_is_a_sum_that_restarts() -> None:
    layers = one([2.0, -3.0], [-0.5, 1.0])
    measure = SensitivitySum(layers)
    measure.update(layers)
    measure.update(layers)
    assert measure.scores()["a"].tolist() == [2.0, 6.0]
    measure.restart()
    assert measure.scores()["a"].tolist() == [0.0, 0.0]


def test_a_non_finite_gradient_of_any_entry_is_named() -> None:
    layers = one([1.0], [1.0])
    layers["a"].P.grad = torch.ones(4, 1)
    layers["a"].Q.grad = torch.full((1, 4), float("inf"))
    with pytest.raises(TrainingError, match=r"adapter a\.Q"):
        SmoothedSensitivity(layers).update(layers)


def test_smoothed_scores_are_those_of_peft() -> None:
    torch.manual_seed(0)
    net = Net()
    peft_model = get_peft_model(
        net, AdaLoraConfig(target_modules=["a", "b"], init_r=3, target_r=1, total_step=100)
    )
    allocator = peft_model.base_model.rankallocator
    layers = {name: SVDLinear.from_linear(getattr(net, name).base_layer, 3) for name in ("a", "b")}
    measure = SmoothedSensitivity(layers)
    for step in range(3):
        torch.manual_seed(step)
        for name, adapter in layers.items():
            theirs = getattr(net, name)
            theirs.lora_E["default"].data.normal_()
            peft_model.zero_grad()
            adapter.lam.data = theirs.lora_E["default"].detach().flatten()
            adapter.P.data, adapter.Q.data = (
                theirs.lora_B["default"].detach(),
                theirs.lora_A["default"].detach(),
            )
        peft_model(torch.randn(7, 6)).square().sum().backward()
        for name, adapter in layers.items():
            theirs = getattr(net, name)
            adapter.lam.grad = theirs.lora_E["default"].grad.flatten()
            adapter.P.grad, adapter.Q.grad = (
                theirs.lora_B["default"].grad,
                theirs.lora_A["default"].grad,
            )
        allocator.update_ipt(peft_model)
        measure.update(layers)

    for name in ("a", "b"):
        key = f"base_model.model.{name}.lora_%s.default"
        entry = {leaf: allocator._element_score(key % leaf) for leaf in "ABE"}
        wanted = entry["E"].flatten() + entry["A"].mean(dim=1) + entry["B"].mean(dim=0)
        assert torch.allclose(measure.scores()[name], wanted, rtol=1e-4)


def test_keeping_a_part_leaves_its_scores() -> None:
    layers = one([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    layers["a"].P.grad, layers["a"].Q.grad = torch.randn(4, 3), torch.randn(3, 4)
    measure = SmoothedSensitivity(layers)
    measure.update(layers)
    whole = measure.scores()["a"]
    measure.keep("a", torch.tensor([0, 2]))
    assert torch.equal(measure.scores()["a"], whole[[0, 2]])
