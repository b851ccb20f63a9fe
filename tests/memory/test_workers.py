"""Several workers at once: which error the caller sees, what becomes of the others, on every Python that is supported."""

import asyncio
from itertools import count

import pytest

from usertwin.memory.concurrency import run_concurrently
from usertwin.personas import ModelError, UsertwinError


def test_each_worker_takes_from_the_same_queue_until_it_is_empty():
    queue, done = iter(range(7)), []

    async def worker() -> None:
        for item in queue:
            await asyncio.sleep(0)
            done.append(item)

    asyncio.run(run_concurrently(worker, 3))
    assert sorted(done) == list(range(7))


@pytest.mark.parametrize("concurrency", [0, 1, 4])
def test_as_many_are_at_work_as_were_asked_for_and_one_at_the_least(concurrency: int):
    started = count()

    async def worker() -> None:
        next(started)

    asyncio.run(run_concurrently(worker, concurrency))
    assert next(started) == max(1, concurrency)


def test_the_first_error_of_ours_comes_bare_and_the_others_are_cancelled():
    number, cancelled = count(), []

    async def worker() -> None:
        mine = next(number)
        try:
            await asyncio.sleep(0 if mine == 1 else 60)
        except asyncio.CancelledError:
            cancelled.append(mine)
            raise
        raise ModelError(f"worker {mine} lost the model")

    with pytest.raises(UsertwinError) as raised:
        asyncio.run(run_concurrently(worker, 3))
    assert type(raised.value) is ModelError
    assert str(raised.value) == "worker 1 lost the model"
    assert sorted(cancelled) == [0, 2]  # in which order a TaskGroup cancels is not said


def test_of_two_errors_of_ours_the_earlier_one_is_seen():
    number = count()

    async def worker() -> None:
        raise ModelError(f"worker {next(number)} lost the model")

    with pytest.raises(ModelError, match="worker 0"):
        asyncio.run(run_concurrently(worker, 2))


def test_an_error_that_is_not_ours_is_not_hidden():
    async def worker() -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(run_concurrently(worker, 2))
    assert raised.group_contains(ZeroDivisionError)
