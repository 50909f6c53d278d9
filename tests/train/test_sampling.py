import pytest

from adalora_qat.errors import ConfigError
from adalora_qat.train.sampling import plan_epoch


def test_every_sample_comes_once_and_weights_make_the_mean() -> None:
    plan = plan_epoch(10, 4, seed=0, epoch=1)
    assert [len(micro.indices) for (micro,) in plan] == [4, 4, 2]
    assert sorted(i for (micro,) in plan for i in micro.indices) == list(range(10))
    assert all(sum(micro.weights) == pytest.approx(1) for (micro,) in plan)


def test_two_processes_share_what_one_does() -> None:
    whole = plan_epoch(10, 4, seed=3, epoch=2)
    halves = [plan_epoch(10, 4, seed=3, epoch=2, rank=rank, world=2) for rank in (0, 1)]
    for step, (micro,) in enumerate(whole):
        shares = [half[step][0] for half in halves]
        used = {
            i: w / 2 for s in shares for i, w in zip(s.indices, s.weights, strict=True) if w > 0
        }
        assert used == dict(zip(micro.indices, micro.weights, strict=True))


def test_a_process_without_samples_gets_a_weightless_filler() -> None:
    last = plan_epoch(5, 4, seed=0, epoch=1, rank=1, world=2)[-1][0]
    assert last.weights == (0.0,)


def test_epochs_differ_and_repeat() -> None:
    assert plan_epoch(10, 4, seed=0, epoch=1) != plan_epoch(10, 4, seed=0, epoch=2)
    assert plan_epoch(10, 4, seed=0, epoch=1) == plan_epoch(10, 4, seed=0, epoch=1)


def test_uneven_shares_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 3"):
        plan_epoch(10, 4, seed=0, epoch=1, world=3)
