"""Work done early, but not too early, and in order."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from adalora_qat.ahead import in_order


def test_results_come_in_order_and_items_are_not_taken_too_early() -> None:
    taken: list[int] = []

    def items() -> object:
        for number in range(20):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(3) as pool:
        for number, square in enumerate(in_order(pool, lambda n: n * n, items(), ahead=4)):
            assert square == number * number
            assert len(taken) <= number + 5
    assert len(taken) == 20


def test_nothing_ahead_is_one_at_a_time() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert list(in_order(pool, str, [1, 2], ahead=0)) == ["1", "2"]


def test_an_error_comes_when_its_turn_comes() -> None:
    with ThreadPoolExecutor(2) as pool:
        results = in_order(pool, lambda n: 1 // n, [1, 0, 1], ahead=2)
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)
