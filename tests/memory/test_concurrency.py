"""run_concurrently: number of workers, which error the caller sees, and cancellation of the other workers."""

import asyncio
from itertools import count

import pytest

from usertwin.memory.concurrency import run_concurrently
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
