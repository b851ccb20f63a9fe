"""memory/concurrency.py: which error the caller sees, and that all other work has ended then."""

import asyncio
import threading
from collections.abc import Sequence
from itertools import count

import pytest

from usertwin.memory.concurrency import Batches, gather, run_concurrently, to_thread
from usertwin.personas import ModelError, UsertwinError


def test_workers_share_a_queue_until_it_is_empty():
    queue, done = iter(range(7)), []

    async def worker() -> None:
        for item in queue:
            await asyncio.sleep(0)
            done.append(item)

    asyncio.run(run_concurrently(worker, 3))
    assert sorted(done) == list(range(7))


@pytest.mark.parametrize("concurrency", [0, 1, 4])
def test_concurrency_is_the_number_of_workers_but_at_least_one(concurrency: int):
    started = count()

    async def worker() -> None:
        next(started)

    asyncio.run(run_concurrently(worker, concurrency))
    assert next(started) == max(1, concurrency)


def test_first_usertwin_error_is_raised_bare_and_the_other_workers_are_cancelled():
    number, cancelled = count(), []

    async def worker() -> None:
        own_number = next(number)
        try:
            await asyncio.sleep(0 if own_number == 1 else 60)
        except asyncio.CancelledError:
            cancelled.append(own_number)
            raise
        raise ModelError(f"worker {own_number} lost the model")

    with pytest.raises(UsertwinError) as raised:
        asyncio.run(run_concurrently(worker, 3))
    assert type(raised.value) is ModelError
    assert str(raised.value) == "worker 1 lost the model"
    assert sorted(cancelled) == [0, 2]  # the order in which a TaskGroup cancels is not specified


def test_earlier_of_two_usertwin_errors_is_raised():
    number = count()

    async def worker() -> None:
        raise ModelError(f"worker {next(number)} lost the model")

    with pytest.raises(ModelError, match="worker 0"):
        asyncio.run(run_concurrently(worker, 2))


def test_other_exceptions_are_raised_as_a_group():
    async def worker() -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(run_concurrently(worker, 2))
    assert raised.group_contains(ZeroDivisionError)


def test_gather_returns_results_in_order():
    async def double(number: int) -> int:
        await asyncio.sleep(0.001 * (3 - number))
        return 2 * number

    assert asyncio.run(gather(*map(double, range(3)))) == [0, 2, 4]
    assert asyncio.run(gather()) == []


def test_the_first_error_of_gather_comes_after_the_end_of_the_others():
    ended = list[str]()

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ModelError("first")

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append("waiter")

    async def work() -> list[str]:
        with pytest.raises(ModelError, match="first"):
            await gather(wait(), fail(), wait())
        return list(ended)

    assert asyncio.run(work()) == ["waiter", "waiter"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_cancelled_thread_has_ended_when_the_cancellation_is_raised(fails: bool):
    started, release, ended = threading.Event(), threading.Event(), list[str]()

    def block() -> None:
        started.set()
        assert release.wait(60)
        ended.append("thread")
        if fails:
            raise ValueError("nobody waits for it")

    async def work() -> list[str]:
        task = asyncio.ensure_future(to_thread(block))
        await asyncio.to_thread(started.wait)
        task.cancel()
        asyncio.get_running_loop().call_later(0.01, release.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        return list(ended)

    assert asyncio.run(work()) == ["thread"]


def test_a_thread_returns_its_result_or_raises_its_error():
    assert asyncio.run(to_thread(max, [1, 2], default=0)) == 2
    with pytest.raises(ZeroDivisionError):
        asyncio.run(to_thread(divmod, 1, 0))


# Batches -------------------------------------------------------------------------------------------------------------


class Doubling:
    """A blocking function of several items that records its calls, and cannot take 13."""

    def __init__(self) -> None:
        self.calls, self.go = list[list[int]](), threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.calls.append(list(items))
        assert self.go.wait(30)
        if 13 in items:
            raise ValueError(f"{len(items)} items")
        return [2 * item for item in items]


def test_items_that_wait_while_a_call_runs_share_the_next_call_in_order() -> None:
    double = Doubling()
    batches = Batches(double)

    async def run() -> list[int]:
        tasks = [asyncio.create_task(batches(number)) for number in range(6)]
        while not double.calls:
            await asyncio.sleep(0)
        double.go.set()
        return await asyncio.gather(*tasks, batches(6))

    assert asyncio.run(run()) == [0, 2, 4, 6, 8, 10, 12]
    assert sorted(number for call in double.calls for number in call) == list(range(7))
    assert len(double.calls) < 7
    assert asyncio.run(batches(7)) == 14  # another event loop


def test_an_item_that_fails_is_an_error_for_its_own_task_only() -> None:
    double = Doubling()
    double.go.set()
    batches = Batches(double)

    async def run() -> list[int | BaseException]:
        return await asyncio.gather(*(batches(number) for number in (1, 13, 2)), return_exceptions=True)

    first, failed, last = asyncio.run(run())
    assert (first, last, str(failed)) == (2, 4, "1 items")


def test_a_cancelled_task_ends_after_the_call_with_its_item_and_others_get_theirs() -> None:
    double = Doubling()
    batches = Batches(double)

    async def run() -> tuple[int, list[bool]]:
        running = asyncio.create_task(batches(1))
        while not double.calls:
            await asyncio.sleep(0)
        waiting, other = asyncio.create_task(batches(2)), asyncio.create_task(batches(3))
        await asyncio.sleep(0)
        waiting.cancel()
        running.cancel()
        await asyncio.sleep(0.01)
        states = [waiting.cancelled(), running.done()]  # the one never began; the other is still in its thread
        double.go.set()
        result = await other
        await asyncio.wait([running])
        return result, [*states, running.cancelled()]

    assert asyncio.run(run()) == (6, [True, False, True])
    assert double.calls == [[1], [3]]


def test_batches_end_with_their_event_loop_and_work_in_the_next_one() -> None:
    double = Doubling()
    batches = Batches(double)

    async def abandon() -> None:
        asyncio.create_task(batches(1))  # noqa: RUF006 - cancelled with the loop
        while not double.calls:
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.01, double.go.set)

    asyncio.run(abandon())
    assert asyncio.run(batches(4)) == 8
