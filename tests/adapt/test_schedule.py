"""When the budget falls: at epochs' ends, or cubically, or never."""

import pytest

from adalora_qat.adapt.schedule import RankSchedule, cubic_budget
from adalora_qat.config import AdaptConfig
from adalora_qat.errors import ConfigError


def budgets(schedule: RankSchedule, steps: int) -> dict[int, int]:
    found = {step: schedule.budget_after(step) for step in range(1, steps + 1)}
    return {step: budget for step, budget in found.items() if budget is not None}


def test_events_fall_on_the_last_steps_of_their_epochs() -> None:
    schedule = RankSchedule(AdaptConfig(), epochs=15, steps_per_epoch=10, layers=12)
    assert budgets(schedule, 150) == {30: 43 * 12, 70: 37 * 12, 120: 32 * 12}
    assert schedule.last_step == 120


def test_a_cubic_fall_ends_at_the_last_rank_and_at_its_step() -> None:
    config = AdaptConfig(allocation="cubic", cubic_interval=7)
    schedule = RankSchedule(config, epochs=10, steps_per_epoch=10, layers=2)
    found = budgets(schedule, 100)
    # Shares 0.1 and 0.3 of 100 steps: nothing before step 11 or after step 70.
    assert list(found) == [14, 21, 28, 35, 42, 49, 56, 63, 70]
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found[70] == 32 * 2
    assert schedule.last_step == 70


@pytest.mark.parametrize(
    "config", [None, AdaptConfig(method="lora", rank=8), AdaptConfig(schedule=())]
)
def test_what_has_no_schedule_is_never_pruned(config: AdaptConfig | None) -> None:
    schedule = RankSchedule(config, epochs=5, steps_per_epoch=4, layers=3)
    assert budgets(schedule, 20) == {}
    assert schedule.last_step == 0


def test_too_few_steps_for_a_cubic_fall_are_refused() -> None:
    config = AdaptConfig(allocation="cubic", cubic_warmup=0.5, cubic_final=0.49)
    with pytest.raises(ConfigError, match="no step to prune in: 2 steps"):
        RankSchedule(config, epochs=2, steps_per_epoch=1, layers=3)


def test_the_cubic_schedule_falls_from_start_to_target() -> None:
    plan = {"total": 110, "warmup": 10, "final": 20, "start": 100, "target": 20}
    seen = [cubic_budget(step, **plan) for step in range(111)]
    assert seen[0] == seen[10] == 100
    # Half way down: 20 + 80 · (1/2)³.
    assert seen[50] == 30
    assert seen[90] == seen[110] == 20
    assert seen == sorted(seen, reverse=True)


def test_a_cubic_allocation_prunes_at_its_interval_and_at_its_end() -> None:
    config = AdaptConfig(
        rank=8,
        schedule=({"epoch": 1, "rank": 2},),
        allocation="cubic",
        cubic_warmup=0.1,
        cubic_final=0.25,
        cubic_interval=20,
    )
    schedule = RankSchedule(config, epochs=10, steps_per_epoch=10, layers=3)
    planned = budgets(schedule, 100)
    assert list(planned) == [20, 40, 60, 75]
    assert planned[75] == 6
    # 6 + 18 · (1 − 10/65)³ = 16.9
    assert planned[20] == 16
    assert config.pruning_at(15) == {}


@pytest.mark.parametrize("change", [{"schedule": ()}, {"cubic_warmup": 0.5, "cubic_final": 0.5}])
def test_a_cubic_allocation_without_room_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"give one|below 1"):
        AdaptConfig(allocation="cubic", **change)
