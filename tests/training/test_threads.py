import threading
import time
from collections.abc import Iterator

import pytest
import torch

from llama_index_embeddings_adapted.training.trainer import limit_threads, run_in_threads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_works_wait_for_each_other_only_if_they_run_side_by_side():
    meeting = threading.Barrier(2, timeout=20)
    seen: list[int] = []

    def work() -> Iterator[None]:
        meeting.wait()  # breaks where the other has not begun
        seen.append(torch.get_num_threads())
        yield

    run_in_threads([work(), work()])
    assert seen == [1, 1]  # two threads, shared by two works
    assert torch.get_num_threads() == 2


def test_one_at_a_time_is_in_order_and_small_steps_have_one_thread():
    done: list[tuple[int, int]] = []

    def work(number: int) -> Iterator[None]:
        for _ in range(2):
            done.append((number, threading.get_ident()))
            yield

    run_in_threads([work(0), work(1)], most=1)
    assert done == [(number, threading.get_ident()) for number in (0, 0, 1, 1)]
    run_in_threads([])
    with limit_threads(10**6):
        assert torch.get_num_threads() == 1
    with limit_threads(10**9):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2


def test_three_works_on_two_threads_take_turns():
    steps: list[tuple[int, int]] = []

    def work(number: int) -> Iterator[None]:
        for at in range(3):
            steps.append((at, number))
            time.sleep(0.01)
            yield

    run_in_threads([work(number) for number in range(3)])
    assert steps.index((0, 2)) < min(steps.index((2, number)) for number in range(3))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_all_of_them_and_is_raised(error):
    steps = 0

    def fails() -> Iterator[None]:
        yield
        raise error("no")

    def goes_on() -> Iterator[None]:
        nonlocal steps
        for _ in range(1000):
            steps += 1
            time.sleep(0.01)
            yield

    with pytest.raises(error, match="no"):
        run_in_threads([fails(), goes_on(), goes_on()])
    assert steps < 1000
    assert torch.get_num_threads() == 2
