import numpy as np
import pytest
import torch

from adalora_qat.quantize.numerics import Numerics
from adalora_qat.quantize.observers import observer_for, weight_threshold


def test_minmax_keeps_the_largest_magnitude() -> None:
    observer = observer_for(Numerics())
    for batch in ([0.1, -3.0], [2.0, 0.0], []):
        observer(torch.tensor(batch))
    assert observer.threshold == 3.0
    assert observer.batches == 2


def test_ema_moves_a_tenth_of_the_way() -> None:
    observer = observer_for(Numerics(observer="ema"))
    observer(torch.tensor([10.0]))
    observer(torch.tensor([-20.0]))
    assert float(observer.threshold) == pytest.approx(11.0)


def test_percentile_is_that_of_all_batches_to_a_bin() -> None:
    rng = np.random.default_rng(0)
    # The second batch is far larger: the histogram must grow and keep the first.
    batches = [rng.standard_normal(20_000), rng.standard_normal(20_000) * 9]
    observer = observer_for(Numerics(observer="percentile", percentile=99.0))
    for batch in batches:
        observer(torch.tensor(batch, dtype=torch.float32))
    expected = np.percentile(np.abs(np.concatenate(batches)), 99)
    largest = np.abs(np.concatenate(batches)).max()
    assert abs(float(observer.threshold) - expected) < 3 * 2 * largest / 2048


def test_mse_clips_an_outlier_and_beats_minmax() -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    values[0] = 60.0
    numerics = Numerics(bits=4, observer="mse")
    observer = observer_for(numerics)
    observer(values)
    chosen = float(observer.threshold)

    def loss(threshold: float) -> float:
        step = threshold / 7
        x = values.numpy().astype(np.float64)
        return float(np.square(x - np.clip(np.rint(x / step), -7, 7) * step).sum())

    best = min(np.linspace(0.6, 60, 400), key=loss)
    assert loss(chosen) < 0.2 * loss(60.0)
    assert loss(chosen) < 1.05 * loss(float(best))


@pytest.mark.parametrize("name", ["minmax", "ema", "percentile", "mse"])
def test_zeros_give_zero_and_nan_stays_visible(name: str) -> None:
    observer = observer_for(Numerics(observer=name))
    observer(torch.zeros(5))
    assert observer.threshold == 0
    observer(torch.tensor([1.0, float("nan")]))
    assert not torch.isfinite(observer.threshold)
    observer.reset()
    observer(torch.ones(3))
    assert float(observer.threshold) == pytest.approx(1.0, abs=0.02)


def test_state_of_observers_is_not_saved() -> None:
    assert not observer_for(Numerics(observer="mse")).state_dict()


@pytest.mark.parametrize("name", ["minmax", "mse", "percentile"])
def test_weight_thresholds_are_per_channel(name: str) -> None:
    weight = torch.randn(3, 400, generator=torch.Generator().manual_seed(1))
    weight *= torch.tensor([1.0, 10.0, 100.0])[:, None]
    numerics = Numerics(granularity="channel", observer=name, percentile=100)
    thresholds = weight_threshold(weight, numerics, 0)
    ratio = thresholds / weight.abs().amax(1)
    assert ((ratio > 0.5) & (ratio <= 1)).all()
    if name != "mse":
        assert (ratio == 1).all()
