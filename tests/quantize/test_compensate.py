import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adalora_qat.adapt.inject import inject
from adalora_qat.adapt.svd_linear import SVDLinear
from adalora_qat.config import AdaptConfig, QuantizeConfig
from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.branch import BranchedLinear
from adalora_qat.quantize.compensate import (
    branches,
    column_weights,
    compensable,
    compensate,
    factorise,
    insert_branches,
    quantized,
    watching_inputs,
)
from adalora_qat.quantize.convert import convert, dequantize
from adalora_qat.quantize.movement import lambdas
from adalora_qat.quantize.numerics import Numerics
from adalora_qat.quantize.pack import load_packed, read_header, save_packed
from adalora_qat.quantize.policy import load_policy, parse_policy
from adalora_qat.quantize.prepare import (
    freeze,
    learn,
    observe,
    prepare,
    quantized_layers,
)

INT4 = Numerics(bits=4, granularity="group", group_size=8)
LOFTQ = QuantizeConfig(compensate="loftq", compensate_rank=3, compensate_targets=("*",))
GROUPS = "weight: {bits: 4, granularity: group, group_size: 8}\n    activation: {bits: 8}"
CHANNEL = "weight: {bits: 4, granularity: channel}\n    activation: {bits: 8}"
WEIGHT_ONLY = "weight: {bits: 4, granularity: channel}"
IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[[5.0, 5, 50, 60]]])


def weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(master: Tensor, factors: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    left, values, right = factors
    return quantized(master, INT4) + (left * values) @ right


def test_one_turn_is_the_best_low_rank_part_of_what_rounding_lost() -> None:
    w = weight(24, 32)
    master, factors, (before, after) = factorise(w, INT4, rank=4, iterations=1)
    assert torch.equal(master, w)
    residual = w - quantized(w, INT4)
    # Eckart and Young: what is left is the tail of the singular values.
    tail = torch.linalg.svdvals(residual.double())[4:].square().sum().sqrt()
    assert (w - whole(master, factors)).norm() == pytest.approx(float(tail), rel=1e-5)
    assert before == pytest.approx(float(residual.norm() / w.norm()), rel=1e-6)
    assert after == pytest.approx(float(tail / w.norm()), rel=1e-4)
    left, _, right = factors
    assert torch.allclose(left.T @ left, torch.eye(4), atol=1e-5)
    assert torch.allclose(right @ right.T, torch.eye(4), atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 32), (32, 12)])
def test_the_leading_part_is_that_of_a_singular_value_decomposition(shape: tuple[int, int]) -> None:
    w = weight(*shape)
    _, (left, values, right), _ = factorise(w, INT4, rank=5, iterations=1)
    residual = w - quantized(w, INT4)
    u, s, v = torch.linalg.svd(residual.double(), full_matrices=False)
    best = (u[:, :5] * s[:5]) @ v[:5]
    assert torch.allclose((left * values) @ right, best.float(), atol=1e-6)
    assert torch.allclose(values, s[:5].float(), rtol=1e-5)


def test_nothing_lost_leaves_an_empty_branch() -> None:
    # Multiples of one scale round without error.
    w = torch.randint(-7, 8, (6, 8), generator=torch.Generator().manual_seed(0)).float()
    w[:, 0] = 7
    master, (left, values, right), errors = factorise(w, INT4, rank=2, iterations=2)
    assert errors == (0.0, 0.0)
    assert torch.equal(quantized(master, INT4), w)
    assert not float(((left * values) @ right).abs().max())
    assert torch.isfinite(left).all() and torch.isfinite(right).all()


def test_more_turns_and_more_rank_are_never_worse() -> None:
    w = weight(24, 32)
    errors = {
        (rank, turns): factorise(w, INT4, rank, turns)[2][1]
        for rank in (2, 4, 8, 24)
        for turns in (1, 5)
    }
    for rank in (2, 4, 8, 24):
        assert errors[rank, 5] <= errors[rank, 1]
    assert errors[2, 1] > errors[4, 1] > errors[8, 1] > errors[24, 1]
    # At full rank the branch holds all that was lost.
    assert errors[24, 1] < 1e-5


def test_inputs_decide_where_the_error_goes() -> None:
    w, size = weight(24, 32), torch.ones(32)
    size[:4] = 20.0
    x = weight(500, 32, seed=1) * size

    def output_error(columns: Tensor | None) -> float:
        master, factors, _ = factorise(w, INT4, 4, 3, columns)
        assert torch.allclose(factors[2].norm(dim=1), torch.ones(4), atol=1e-5)
        return float((x @ (w - whole(master, factors)).T).norm())

    columns = column_weights("a", {"a": x.double().square().mean(0)})
    assert columns is not None
    assert float(columns.square().mean()) == pytest.approx(1)
    assert output_error(columns) < 0.7 * output_error(None)


def test_inputs_that_were_never_seen_weigh_alike() -> None:
    with pytest.raises(ConfigError, match="needs the inputs' moments"):
        column_weights("a", {})
    assert column_weights("a", {"b": torch.ones(3)}) is None
    assert column_weights("a", {"a": torch.zeros(3)}) is None


def model(numerics: str, *, rank: int | None = None) -> nn.Sequential:
    torch.manual_seed(5)
    made = nn.Sequential(nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 12, bias=False))
    if rank is not None:
        inject(made, AdaptConfig(targets=("0",), rank=rank or 1, schedule=()), seed=0)
        adapter = made[0]
        assert isinstance(adapter, SVDLinear)
        adapter.lam.data.fill_(0.5)
        if rank == 0:
            adapter.mask.fill_(False)
            adapter.compact()
    prepare(made, parse_policy(f"name: t\nrows:\n  - match: '*'\n    {numerics}\n", "t"))
    observe(made)
    with watching_inputs(compensable(made, LOFTQ)) as moments:
        made(weight(64, 20, seed=2))
    assert {name: len(values) for name, values in moments.items()} == {"0": 20, "2": 16}
    return made


@pytest.mark.parametrize("numerics", [GROUPS, CHANNEL, WEIGHT_ONLY])
def test_converted_branches_compute_the_same_to_the_bit(numerics: str) -> None:
    made, x = model(numerics), weight(30, 20, seed=3)
    compensate(made, LOFTQ)
    freeze(made)
    made.eval().requires_grad_(False)
    expected = made(x)
    assert torch.equal(convert(made)(x), expected)
    float_model = dequantize(copy.deepcopy(made))
    # The float layer holds weight and branch in one; its input is not rounded.
    assert torch.allclose(float_model(x), expected, atol=0.2)
    assert torch.equal(float_model(x), expected) == (numerics == WEIGHT_ONLY)


@pytest.mark.parametrize("rank", [None, 4, 0], ids=["plain", "adapted", "rank 0"])
def test_a_branch_takes_the_place_of_the_adapter(rank: int | None) -> None:
    made, x = model(GROUPS, rank=rank), weight(30, 20, seed=3)
    plain = copy.deepcopy(made)
    exact = made(x).detach()
    freeze(plain)
    done = compensate(made, LOFTQ)
    freeze(made)
    assert branches(made) == {"0": 3, "2": 3}
    assert {layer.name: layer.rank for layer in done} == {"0": 3, "2": 3}
    assert all(layer.after < layer.before for layer in done)
    assert [layer.bytes for layer in done] == [2 * 3 * 36, 2 * 3 * 28]

    def error(quantized_model: nn.Module) -> float:
        return float((quantized_model(x).detach() - exact).norm())

    # Of W + ΔW, not of W: with the branches the output is nearer to the float model's.
    assert error(made) < 0.9 * error(plain)


def test_only_few_bits_and_the_named_layers_are_compensated() -> None:
    made = model(GROUPS)
    config = LOFTQ.model_copy(update={"compensate_targets": ("2",)})
    assert list(compensable(made, config)) == ["2"]
    with pytest.raises(ConfigError, match="finds no linear layer of at most 4 bits named like x"):
        compensate(made, LOFTQ.model_copy(update={"compensate_targets": ("x",)}))
    with pytest.raises(ConfigError, match="at most 3 bits"):
        compensate(made, LOFTQ.model_copy(update={"compensate_bits": 3}))
    assert compensate(made, QuantizeConfig()) == []


def test_gradients_reach_branch_master_and_scale() -> None:
    made = model(GROUPS)
    compensate(made, LOFTQ)
    freeze(made)
    made.requires_grad_(True)
    scales = learn(made)
    made(weight(30, 20, seed=3)).square().sum().backward()
    for name in ("0.layer.weight", "0.layer.P", "0.layer.lam", "0.layer.Q", "2.layer.weight"):
        gradient = made.get_parameter(name).grad
        assert gradient is not None, name
        assert float(gradient.abs().sum()) > 0, name
    assert all(float(scale.grad.abs().sum()) > 0 for scale in scales.values())  # type: ignore[union-attr]


def test_the_shipped_branch_is_float16_and_passes_gradients() -> None:
    branch = BranchedLinear.from_factors(
        weight(6, 5), None, weight(6, 2, seed=1), torch.tensor([1.3, 1e6]), weight(2, 5, seed=2)
    ).requires_grad_(True)
    left, right = branch.shipped_factors()
    assert torch.isfinite(left).all()
    for factor in (left, right):
        assert torch.equal(factor.half().float(), factor)
    (left.sum() + right.sum()).backward()
    assert torch.equal(branch.Q.grad, torch.ones(2, 5))  # type: ignore[arg-type]
    assert torch.allclose(branch.lam.grad, branch.P.detach().sum(0))  # type: ignore[arg-type]


def segmenter(
    variant: str, *, compensated: bool = True, options: QuantizeConfig = LOFTQ
) -> Segmenter:
    made = random_segmenter(variant, 0)
    found = inject(made.image_encoder, AdaptConfig(rank=4, schedule=()), seed=1)
    for adapter in found.values():
        adapter.lam.data.fill_(0.3)  # type: ignore[union-attr]
    fold_batch_norms(made)
    prepare(made, load_policy("w4a8"), options)
    observe(made)
    with torch.no_grad():
        made(IMAGES, BOXES)
    if compensated:
        compensate(made, options)
    freeze(made)
    return made


@pytest.mark.parametrize("scales", ["float32", "float16"])
@pytest.mark.parametrize("variant", ["tiny-test", "tiny-vit-test"])
def test_a_packed_file_gives_the_model_back_to_the_bit(
    variant: str, scales: str, tmp_path: Path
) -> None:
    made = segmenter(variant, options=LOFTQ.model_copy(update={"group_scales": scales}))
    with torch.no_grad():
        expected = made(IMAGES, BOXES)
        convert(made)
    header = save_packed(made, tmp_path / "m.safetensors", policy=load_policy("w4a8"))
    assert set(header.branches.values()) <= {1, 2, 3}
    assert read_header(tmp_path / "m.safetensors") == header
    again = load_packed(tmp_path / "m.safetensors", random_segmenter(variant, 9))
    with torch.no_grad():
        found = again(IMAGES, BOXES)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    stored = load_file(tmp_path / "m.safetensors")
    factors = [value for name, value in stored.items() if ".branch_" in name]
    assert factors and {value.dtype for value in factors} == {torch.float16}
    kinds = {value.dtype for name, value in stored.items() if name.endswith("weight_scale")}
    assert (torch.float16 in kinds) == (scales == "float16")


def test_branches_are_rebuilt_by_name_and_rank() -> None:
    made = segmenter("tiny-test")
    state, ranks = made.state_dict(), branches(made)
    empty = segmenter("tiny-test", compensated=False)
    assert branches(empty) == {}
    insert_branches(empty, ranks, "file")
    empty.load_state_dict(state)
    with torch.no_grad():
        one, other = made(IMAGES, BOXES), empty(IMAGES, BOXES)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert lambdas(made).keys() == set(quantized_layers(made)) & set(ranks)
    with pytest.raises(CheckpointError, match="no quantized linear layer nowhere"):
        insert_branches(empty, {"nowhere": 2}, "file")
