"""The global budget: which triplets stay, that the others never return, and compaction."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adalora_qat.adapt.inject import inject, svd_adapters
from adalora_qat.adapt.rank_budget import (
    RankBudget,
    after_step,
    compact,
    global_masks,
    history_csv,
    ranks,
)
from adalora_qat.adapt.svd_linear import SVDLinear, orthogonality_penalty
from adalora_qat.config import AdaptConfig
from adalora_qat.errors import CheckpointError, ConfigError, TrainingError


def model(rank: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    inject(net, AdaptConfig(targets=("[024]",), rank=rank, schedule=()), seed=0)
    return net


def with_gradients(
    lam: dict[str, list[float]], grad: dict[str, list[float]]
) -> dict[str, SVDLinear]:
    found = {}
    for name, values in lam.items():
        adapter = SVDLinear.from_linear(nn.Linear(8, 8), len(values), 1.0)
        adapter.lam.data = torch.tensor(values)
        adapter.lam.grad = torch.tensor(grad[name])
        found[name] = adapter
    return found


def test_importance_is_summed_over_steps() -> None:
    layers = with_gradients({"a": [1.0, -2.0]}, {"a": [0.5, -0.25]})
    budget = RankBudget(layers)
    budget.accumulate(layers)
    layers["a"].lam.grad = torch.tensor([-2.0, 0.0])
    budget.accumulate(layers)
    assert budget.importance["a"].tolist() == [2.5, 0.5]
    assert budget.steps == 2


def test_one_budget_over_all_layers() -> None:
    layers = with_gradients(
        {"a": [1.0, 1.0, 1.0], "b": [1.0, 1.0, 1.0], "c": [1.0, 1.0, 1.0]},
        {"a": [9.0, 8.0, 7.0], "b": [6.0, 0.1, 0.2], "c": [0.3, 0.4, 5.0]},
    )
    budget = RankBudget(layers)
    budget.accumulate(layers)
    event = budget.prune_to(layers, 2 * len(layers), epoch=3, step=30)
    assert event.ranks == ranks(layers) == {"a": 3, "b": 1, "c": 2}
    assert layers["c"].mask.tolist() == [False, True, True]
    assert layers["b"].lam.tolist() == [1.0, 0.0, 0.0]
    assert event.ranks_before == {"a": 3, "b": 3, "c": 3}
    assert event.importance["a"] == pytest.approx(24)
    assert budget.steps == 0
    assert not budget.importance["a"].any()


def test_pruned_triplets_do_not_return_however_important_they_become() -> None:
    layers = with_gradients({"a": [1.0, 1.0, 1.0]}, {"a": [1.0, 2.0, 3.0]})
    budget = RankBudget(layers)
    budget.accumulate(layers)
    budget.prune_to(layers, 2 * len(layers))
    layers["a"].lam.data = torch.ones(3)
    layers["a"].lam.grad = torch.tensor([99.0, 1.0, 2.0])
    budget.accumulate(layers)
    budget.prune_to(layers, 1 * len(layers))
    assert layers["a"].mask.tolist() == [False, False, True]


def test_ties_keep_low_indices_then_earlier_names() -> None:
    equal = {name: torch.zeros(3) for name in ("b", "a")}
    alive = {name: torch.ones(3, dtype=torch.bool) for name in equal}
    kept = global_masks(equal, alive, 3)
    assert kept["a"].tolist() == [True, True, False]
    assert kept["b"].tolist() == [True, False, False]


@settings(deadline=None, max_examples=50)
@given(
    scores=st.lists(st.lists(st.integers(0, 5), max_size=5), min_size=1, max_size=4),
    data=st.data(),
)
def test_the_kept_are_the_best_of_the_active(scores: list[list[int]], data: st.DataObject) -> None:
    layers = {str(i): torch.tensor(row, dtype=torch.float32) for i, row in enumerate(scores)}
    alive = {
        name: torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s))))
        .bool()
        .reshape(len(s))
        for name, s in layers.items()
    }
    total = sum(int(mask.sum()) for mask in alive.values())
    budget = data.draw(st.integers(0, total))
    kept = global_masks(layers, alive, budget)
    flat = torch.cat(list(layers.values()))
    flat_kept, flat_alive = torch.cat(list(kept.values())), torch.cat(list(alive.values()))
    assert int(flat_kept.sum()) == budget
    assert not (flat_kept & ~flat_alive).any()
    dropped = flat[flat_alive & ~flat_kept]
    if budget and dropped.numel():
        assert flat[flat_kept].min() >= dropped.max()


@pytest.mark.parametrize("mean_rank", [-1, 5])
def test_a_budget_that_rises_is_refused(mean_rank: int) -> None:
    layers = svd_adapters(model(rank=4))
    with pytest.raises(ConfigError, match="ranks only fall"):
        RankBudget(layers).prune_to(layers, mean_rank * len(layers))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_and_adds_nothing(value: float) -> None:
    layers = with_gradients({"a": [1.0], "b": [1.0]}, {"a": [1.0], "b": [value]})
    budget = RankBudget(layers)
    with pytest.raises(TrainingError, match="adapter b:"):
        budget.accumulate(layers)
    assert budget.importance["a"].tolist() == [0.0]
    assert budget.steps == 0


def test_a_missing_gradient_is_named() -> None:
    layers = svd_adapters(model())
    with pytest.raises(TrainingError, match="adapter 0 has no gradient"):
        RankBudget(layers).accumulate(layers)


def test_the_orthogonality_penalty_adds_nothing_to_importance() -> None:
    x = torch.randn(16, 6)
    seen = []
    for weight in (0.0, 10.0):
        net = model()
        layers = svd_adapters(net)
        with torch.no_grad():
            for adapter in layers.values():
                adapter.lam.fill_(0.5)
                adapter.P.mul_(1.5)
        loss = net(x).square().mean() + weight * orthogonality_penalty(layers)
        loss.backward()
        budget = RankBudget(layers)
        budget.accumulate(layers)
        seen.append(budget.importance)
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


def train(
    net: nn.Module, optimizer: torch.optim.Optimizer, budget: RankBudget, steps: int, seed: int
) -> list[float]:
    layers = svd_adapters(net)
    data = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        x = torch.randn(16, 6, generator=data).to(next(net.parameters()).dtype)
        loss = (net(x) - x.flip(-1)).square().mean() + 0.1 * orthogonality_penalty(layers)
        optimizer.zero_grad()
        loss.backward()
        budget.accumulate(layers)
        optimizer.step()
        after_step(layers, optimizer)
        losses.append(loss.item())
    return losses


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.02, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_compacted_training_follows_the_masked_run(kind: str) -> None:
    # Fewer ranks sum in another order. In float64 that stays far below what a lost moment does.
    def run(compacting: bool) -> tuple[list[float], dict[str, list[float]], nn.Module]:
        net = model().double()
        layers = svd_adapters(net)
        optimizer = OPTIMIZERS[kind]([p for p in net.parameters() if p.requires_grad])
        budget = RankBudget(layers)
        losses = train(net, optimizer, budget, 8, seed=1)
        for mean_rank in (3, 1):
            budget.prune_to(layers, mean_rank * len(layers))
            if compacting:
                x = torch.randn(5, 6).double()
                before = net(x)
                budget.compact(layers, optimizer)
                assert torch.allclose(net(x), before, rtol=0, atol=1e-13)
            losses += train(net, optimizer, budget, 8, seed=mean_rank + 1)
        return losses, {n: a.lam[a.mask].tolist() for n, a in layers.items()}, net

    masked_losses, masked, full = run(compacting=False)
    losses, compacted, small = run(compacting=True)
    assert losses == pytest.approx(masked_losses, rel=1e-10)
    for name in masked:
        assert compacted[name] == pytest.approx(masked[name], rel=1e-10, abs=1e-12)
    assert sum(a.rank for a in svd_adapters(full).values()) == 12
    assert sum(a.rank for a in svd_adapters(small).values()) == 3


def test_momentum_does_not_regrow_a_pruned_triplet() -> None:
    net = model()
    layers = svd_adapters(net)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05)
    budget = RankBudget(layers)
    train(net, optimizer, budget, 4, seed=1)
    budget.prune_to(layers, 2 * len(layers))
    train(net, optimizer, budget, 4, seed=2)
    for adapter in layers.values():
        pruned = ~adapter.mask
        assert not adapter.lam[pruned].any()
        assert not optimizer.state[adapter.lam]["exp_avg"][pruned].any()
        assert not optimizer.state[adapter.lam]["exp_avg_sq"][pruned].any()
    assert sum(int((~a.mask).sum()) for a in layers.values()) == 6


def test_a_layer_that_falls_to_rank_zero_trains_on() -> None:
    net = model()
    layers = svd_adapters(net)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.02)
    budget = RankBudget(layers)
    train(net, optimizer, budget, 2, seed=1)
    budget.importance["2"].zero_()
    for name in ("0", "4"):
        budget.importance[name].add_(1)
    budget.prune_to(layers, 2 * len(layers))
    budget.compact(layers, optimizer)
    assert layers["2"].rank == 0
    before = layers["0"].lam.clone()
    train(net, optimizer, budget, 2, seed=2)
    assert not torch.equal(before, layers["0"].lam)
    budget.prune_to(layers, 1 * len(layers))
    assert sum(ranks(layers).values()) == 3


def test_optimizer_state_of_another_shape_is_refused_before_anything_changes() -> None:
    net = model()
    layers = svd_adapters(net)
    optimizer = torch.optim.Adafactor([p for p in net.parameters() if p.requires_grad])
    budget = RankBudget(layers)
    train(net, optimizer, budget, 1, seed=1)
    budget.prune_to(layers, 2 * len(layers))
    with pytest.raises(ConfigError, match="cannot be compacted"):
        compact(layers, optimizer)
    assert all(adapter.rank == 4 for adapter in layers.values())


def test_state_resumes_the_accumulation() -> None:
    layers = with_gradients({"a": [1.0, 2.0]}, {"a": [3.0, 4.0]})
    budget = RankBudget(layers)
    budget.accumulate(layers)
    state = budget.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    resumed = RankBudget(layers)
    resumed.load_state_dict(state)
    budget.accumulate(layers)
    resumed.accumulate(layers)
    assert resumed.steps == 2
    assert torch.equal(resumed.importance["a"], budget.importance["a"])
    assert state["importance.a"].tolist() == [3.0, 8.0]
    with pytest.raises(CheckpointError, match="another model"):
        RankBudget(svd_adapters(model())).load_state_dict(state)


def test_history_survives_json_and_csv() -> None:
    layers = with_gradients({"a": [1.0, 1.0], "b": [1.0, 1.0]}, {"a": [1.0, 2.0], "b": [0.1, 0.2]})
    budget = RankBudget(layers)
    budget.accumulate(layers)
    budget.prune_to(layers, 1 * len(layers), epoch=3, step=12)
    again = RankBudget(layers)
    again.load_history(json.loads(json.dumps(budget.history_json())))
    assert again.history == budget.history
    rows = list(csv.DictReader(io.StringIO(history_csv(budget.history))))
    assert [(r["event"], r["epoch"], r["step"], r["layer"]) for r in rows] == [
        ("1", "3", "12", "a"),
        ("1", "3", "12", "b"),
    ]
    assert [(r["rank_before"], r["rank"]) for r in rows] == [("2", "2"), ("2", "0")]
    assert float(rows[0]["importance"]) == pytest.approx(3.0)


PROCESS = """
import sys
import torch, torch.distributed as dist
from torch import nn
from adalora_qat.adapt.rank_budget import RankBudget, ranks
from adalora_qat.adapt.svd_linear import SVDLinear

process, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=process, world_size=2)
layers = {name: SVDLinear.from_linear(nn.Linear(4, 4), 4) for name in "ab"}
budget = RankBudget(layers)
for adapter in layers.values():
    adapter.lam.data.fill_(1.0)
    # The processes disagree about what matters: process 0 decides.
    score = torch.tensor([4.0, 3.0, 2.0, 1.0])
    adapter.lam.grad = score if process == 0 else score.flip(0)
budget.accumulate(layers)
budget.prune_to(layers, 2 * len(layers))
print([adapter.lam.tolist() for adapter in layers.values()], ranks(layers))
dist.destroy_process_group()
"""


def test_masks_of_the_first_process_hold_everywhere(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", PROCESS, str(i), str(tmp_path)] for i in (0, 1)]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
    printed = [process.communicate(timeout=120)[0].strip() for process in running]
    wanted = "[[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]] {'a': 2, 'b': 2}"
    assert printed == [wanted, wanted]


def test_compaction_carries_the_smoothed_measure_along() -> None:
    net = model()
    layers = svd_adapters(net)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.02)
    budget = RankBudget(layers, "peft")
    train(net, optimizer, budget, 4, seed=1)
    budget.prune_to(layers, 2 * len(layers))
    wanted = {name: budget.importance[name][a.mask] for name, a in layers.items()}
    budget.compact(layers, optimizer)
    # Nine roundings of positive terms on either side: six of a mean, its division, two additions.
    torch.testing.assert_close(budget.importance, wanted, rtol=2 * 9 * 2.0**-24, atol=0)
    train(net, optimizer, budget, 2, seed=2)
    assert sum(ranks(layers).values()) == 6
