import copy

import pytest
import torch
from torch import Tensor, nn

from adalora_qat.adapt.inject import adapters, inject
from adalora_qat.config import AdaptConfig, QuantizeConfig
from adalora_qat.errors import ConfigError, TrainingError
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.layers import FakeQuantLayer
from adalora_qat.quantize.policy import load_policy, parse_policy
from adalora_qat.quantize.prepare import (
    freeze,
    learn,
    observe,
    prepare,
    quantized_layers,
    refresh,
    spread,
)

EVERYTHING = "name: x\nrows: [{match: '*', weight: {bits: 8}, activation: {bits: 8}}]"
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[[5.0, 5, 50, 60]], [[1, 2, 30, 40]]])


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))


def calibrated(model: nn.Module, x: Tensor, **options: object) -> nn.Module:
    prepare(model, parse_policy(EVERYTHING, "x"), QuantizeConfig.model_validate(options))
    observe(model)
    model(x)
    freeze(model)
    return model


@pytest.fixture(scope="module", params=["tiny-test", "tiny-vit-test"])
def adapted(request: pytest.FixtureRequest) -> Segmenter:
    segmenter = random_segmenter(request.param, 0)
    generator = torch.Generator().manual_seed(0)
    for adapter in inject(segmenter.image_encoder, AdaptConfig(rank=4, schedule=()), 0).values():
        adapter.lam.data = torch.randn(adapter.lam.shape, generator=generator) * 0.3
    return segmenter


@torch.no_grad()
def test_prepare_and_observe_change_no_output(adapted: Segmenter) -> None:
    expected = adapted(IMAGES, BOXES)[0]
    model = copy.deepcopy(adapted)
    prepare(model, load_policy("int8-all"))
    assert torch.equal(model(IMAGES, BOXES)[0], expected)
    observe(model)
    assert torch.equal(model(IMAGES, BOXES)[0], expected)
    unseen = freeze(model)
    assert unseen == [f"prompt_encoder.mask_embed.conv{i}" for i in (1, 2, 3)]
    quantized = model(IMAGES, BOXES)[0]
    assert not torch.equal(quantized, expected)
    assert (quantized - expected).abs().mean() < 0.2 * expected.abs().mean()


def test_layers_match_a_calculation_by_hand() -> None:
    """One linear layer, integers recomputed in NumPy-like float64 from the definition."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 3)), torch.randn(4, 5)
    weight, bias = model[0].weight.detach().double(), model[0].bias.detach().double()
    calibrated(model, x)
    s_x, s_w = x.abs().max().double() / 127, weight.abs().max() / 127
    q_x, q_w = (x.double() / s_x).round(), (weight / s_w).round()
    q_b = (bias / (s_x * s_w)).round()
    expected = (q_x @ q_w.T + q_b) * (s_x * s_w)
    # Float32 rounds each of two scales, two products with them and the six terms of the sum.
    sizes = (q_x.abs() @ q_w.abs().T + q_b.abs()) * (s_x * s_w)
    assert ((model(x).double() - expected).abs() <= 10 * 2.0**-24 * sizes).all()


def test_effective_weight_is_quantized_and_gradients_reach_the_adapter(adapted: Segmenter) -> None:
    model = copy.deepcopy(adapted)
    prepare(model, load_policy("int8-all"))
    observe(model)
    model(IMAGES, BOXES)
    freeze(model)
    name, adapter = next(iter(adapters(model.image_encoder).items()))
    layer = model.image_encoder.get_submodule(name.removesuffix(".layer"))
    assert isinstance(layer, FakeQuantLayer)
    effective = (adapter.weight + adapter.delta_weight()).detach()
    # Were W alone quantized, the difference would be as large as ΔW.
    error = (layer.quantized_weight() - effective).abs().max()
    step = float(effective.abs().max()) / 127
    assert error <= step * 0.501
    assert adapter.delta_weight().abs().max() > 3 * step
    model(IMAGES, BOXES)[0].square().mean().backward()
    for found in adapters(model.image_encoder).values():
        for parameter in (found.P, found.lam, found.Q):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    before = layer.quantized_weight().detach().clone()
    with torch.no_grad():
        adapter.lam.mul_(0.5)
    assert not torch.equal(layer.quantized_weight(), before)


@torch.no_grad()
def test_rank_zero_adapters_are_quantized_as_their_weight() -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    inject(model, AdaptConfig(rank=1, targets=("0",), schedule=()), 0, ranks={"0": 0})
    plain = nn.Sequential(model[0].to_linear())
    x = torch.randn(3, 6)
    assert torch.equal(calibrated(model, x)(x), calibrated(plain, x)(x))


@pytest.mark.parametrize("policy", ["full", "w4a8"])
@torch.no_grad()
def test_state_dict_round_trip_restores_scales_and_mode(adapted: Segmenter, policy: str) -> None:
    trained, fresh = copy.deepcopy(adapted), copy.deepcopy(adapted)
    for model in (trained, fresh):
        prepare(model, load_policy(policy))
    observe(trained)
    trained(IMAGES, BOXES)
    freeze(trained)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(IMAGES, BOXES)[0], trained(IMAGES, BOXES)[0])
    fresh.load_state_dict(trained.state_dict())


def test_learning_makes_scales_parameters_under_the_same_keys() -> None:
    x = torch.randn(10, 6)
    model = calibrated(small(), x)
    keys, frozen = list(model.state_dict()), model(x).detach()
    learned = learn(model)
    assert set(learned) == {
        f"{i}.{which}_quantizer.scale" for i in (0, 2) for which in ("weight", "input")
    }
    assert sorted(model.state_dict()) == sorted(keys)
    torch.testing.assert_close(model(x), frozen, rtol=1e-5, atol=1e-6)
    model(x).square().sum().backward()
    assert all(scale.grad is not None and scale.grad != 0 for scale in learned.values())
    with torch.no_grad():
        learned["0.input_quantizer.scale"].mul_(1.5)
    freeze(model)
    assert not any(name.endswith("scale") for name, _ in model.named_parameters())
    kept = model.state_dict()["0.input_quantizer.scale"]
    assert torch.equal(kept, learned["0.input_quantizer.scale"])


def test_kept_integers_follow_loading_training_and_refresh() -> None:
    x = torch.randn(10, 6)
    model = calibrated(small().requires_grad_(False), x)
    layer = quantized_layers(model)["0"]
    assert isinstance(layer, FakeQuantLayer) and layer._integers is not None
    assert "_integers" not in "".join(model.state_dict())
    before = model(x)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["0.layer.weight"] *= 0.5
    model.load_state_dict(state)
    assert not torch.equal(model(x), before)
    half = model(x)
    layer.layer.weight.data.zero_()
    assert torch.equal(model(x), half)
    refresh(model)
    assert not torch.equal(model(x), half)
    layer.layer.weight.requires_grad_(True)
    layer.layer.weight.data.fill_(0.3)
    assert torch.equal(model(x), model(x)) and model(x).requires_grad


def test_misuse_is_refused() -> None:
    model, policy, x = small(), parse_policy(EVERYTHING, "x"), torch.randn(2, 6)
    for step in (observe, freeze):
        with pytest.raises(ConfigError, match="prepare"):
            step(model)
    prepare(model, policy)
    with pytest.raises(ConfigError, match="already prepared"):
        prepare(model, policy)
    with pytest.raises(ConfigError, match="observe"):
        freeze(model)
    with pytest.raises(ConfigError, match="freeze"):
        learn(model)
    observe(model)
    with pytest.raises(ConfigError, match="no batch"):
        freeze(model)
    model(x * float("nan"))
    with pytest.raises(TrainingError, match="0: cannot choose"):
        freeze(model)


@torch.no_grad()
def test_all_zero_and_denormal_inputs_give_the_bias() -> None:
    for factor in (0.0, 1e-41):
        model = small()[:1]
        bias = model[0].bias.clone()
        x = torch.full((2, 6), factor)
        calibrated(model, x)
        step = float(model[0].weight_quantizer.scale)
        assert (model(x) - bias).abs().max() <= step / 2
        assert torch.isfinite(model(torch.full((2, 6), 1e30))).all()


@torch.no_grad()
def test_a_bias_far_beyond_the_inputs_still_fits_int32() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    model[0].weight.fill_(1e-3)
    model[0].bias.copy_(torch.tensor([5.0, -3.0]))
    x = torch.full((1, 4), 1e-9)
    calibrated(model, x)
    torch.testing.assert_close(model(x), torch.tensor([[5.0, -3.0]]))


@torch.no_grad()
def test_a_module_used_twice_is_wrapped_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared})
    prepare(model, parse_policy(EVERYTHING, "x"))
    assert model["a"] is model["b"] and isinstance(model["a"], FakeQuantLayer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_training_stays_close_and_finite(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 64), nn.GELU(), nn.Linear(64, 8))
    x = torch.randn(16, 512)
    calibrated(model, x)
    expected = model(x)
    with torch.autocast("cpu", dtype=dtype):
        found = model(x)
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()
    found.float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_compiled_training_step_equals_the_eager_one() -> None:
    x = torch.randn(4, 6)
    model = calibrated(small(), x)
    eager = model(x)
    eager.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = compiled(x)
    found.sum().backward()
    torch.testing.assert_close(found, eager)
    for parameter, expected in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_spread_keeps_what_rounding_alone_would_undo() -> None:
    generator = torch.Generator().manual_seed(0)
    layer, untouched = nn.Linear(64, 64), nn.Linear(64, 64)
    for each in (layer, untouched):
        # As they come from an INT8 file: on a grid, which 127 fixes.
        on_grid = torch.randint(-127, 128, (64, 64), generator=generator)
        on_grid[0, 0] = 127
        each.weight.data = on_grid * 0.01
    before = layer.weight.detach().clone()
    # A tenth of a step, of rank 1.
    moved = torch.outer(*torch.randn(2, 64, generator=generator).sign()) * 0.001
    layer.weight.data += moved
    model = calibrated(nn.Sequential(layer, untouched), torch.rand(8, 64), observer="mse")
    first, second = quantized_layers(model).values()
    assert isinstance(first, FakeQuantLayer) and isinstance(second, FakeQuantLayer)

    def survives() -> float:
        change = first.quantized_weight().detach() - before
        return float((change * moved).sum() / moved.square().sum())

    integers = second.weight_quantizer.integers(second.effective_weight())
    assert abs(survives()) < 0.01
    spread(model, seed=0)
    assert survives() == pytest.approx(1, abs=0.15)
    assert torch.equal(second.weight_quantizer.integers(second.effective_weight()), integers)
