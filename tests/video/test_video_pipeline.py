from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import suppress

import pytest

from rvos_deploy.errors import InputError
from rvos_deploy.video.pipeline import BackgroundSink, prefetch


def alive(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def wait_until(condition: object, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


class Numbers:
    """Counts what was taken from it, and notices that it was closed."""

    def __init__(self, stop: int = 10**9) -> None:
        self.made, self.closed_by, self._stop = 0, "", stop

    def __iter__(self) -> Iterator[int]:
        try:
            while self.made < self._stop:
                self.made += 1
                yield self.made - 1
        finally:
            self.closed_by = threading.current_thread().name


def test_prefetch_gives_everything_in_order() -> None:
    source = Numbers(200)
    assert list(prefetch(source, depth=3)) == list(range(200))
    assert not alive("prefetch")
    assert source.closed_by == "prefetch"
    assert list(prefetch([], depth=1)) == []


def test_prefetch_is_ahead_by_its_depth_and_no_more() -> None:
    source = Numbers()
    items = prefetch(source, depth=3)
    assert source.made == 0
    assert next(items) == 0
    wait_until(lambda: source.made == 4)
    time.sleep(0.03)
    assert source.made == 4
    items.close()


def fails_after_two() -> Iterator[int]:
    yield 0
    yield 1
    raise KeyError("deep inside")


def test_prefetch_raises_what_the_iterator_raised_with_its_traceback() -> None:
    taken: list[int] = []
    with pytest.raises(KeyError, match="deep inside") as caught:
        taken.extend(prefetch(fails_after_two()))
    assert taken == [0, 1]
    assert "fails_after_two" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert not alive("prefetch")


def consume(items: Generator[int, None, None], how: str) -> None:
    for _ in items:
        if how == "break":
            return
        if how == "close":
            items.close()
        if how in ("exception", "interrupt"):
            raise KeyboardInterrupt if how == "interrupt" else ValueError


@pytest.mark.parametrize("how", ["break", "close", "exception", "interrupt"])
def test_prefetch_stops_its_thread_when_the_consumer_stops(how: str) -> None:
    source = Numbers()
    started = time.monotonic()
    with suppress(ValueError, KeyboardInterrupt):
        consume(prefetch(source, depth=2), how)
    wait_until(lambda: not alive("prefetch"))
    assert time.monotonic() - started < 2
    assert source.closed_by == "prefetch"


def test_prefetch_overlaps_making_and_using() -> None:
    def slow() -> Iterator[int]:
        for i in range(8):
            time.sleep(0.02)
            yield i

    started = time.monotonic()
    for _ in prefetch(slow(), depth=2):
        time.sleep(0.02)
    assert time.monotonic() - started < 0.28  # one after the other: 0.32 s


def test_a_sink_keeps_order_and_finishes_everything() -> None:
    seen: list[int] = []
    with BackgroundSink(seen.append, depth=2) as sink:
        for i in range(100):
            sink.submit(i)
    assert seen == list(range(100))
    assert not alive("sink")


def test_a_sink_is_bounded() -> None:
    gate, submitted = threading.Event(), []
    sink = BackgroundSink(lambda _: gate.wait(5), depth=2)

    def fill() -> None:
        for i in range(6):
            sink.submit(i)
            submitted.append(i)

    thread = threading.Thread(target=fill)
    thread.start()
    wait_until(lambda: len(submitted) == 3)  # one under way, two queued
    time.sleep(0.03)
    assert len(submitted) == 3
    gate.set()
    thread.join(5)
    sink.close()
    assert len(submitted) == 6


def fail_on_two(i: int) -> None:
    if i == 2:
        raise OSError("disk full")


def submit_many(sink: BackgroundSink[[int]]) -> None:
    with sink:
        for i in range(1000):
            sink.submit(i)
            time.sleep(0.001)
        raise AssertionError("submit raised nothing")


@pytest.mark.parametrize("workers", [1, 3])
def test_a_failure_in_a_sink_reaches_the_submitter(workers: int) -> None:
    sink = BackgroundSink(fail_on_two, depth=1, workers=workers)
    with pytest.raises(OSError, match="disk full"):
        submit_many(sink)
    with pytest.raises(OSError, match="disk full"):
        sink.submit(1)
    assert not alive("sink")


def test_a_failure_in_the_last_call_is_raised_by_close_once() -> None:
    sink = BackgroundSink(fail_on_two)
    sink.submit(2)
    with pytest.raises(OSError, match="disk full") as caught:
        sink.close()
    sink.close()
    assert "fail_on_two" in "".join(traceback.format_tb(caught.value.__traceback__))


def test_an_exception_in_the_block_finishes_what_was_submitted() -> None:
    seen: list[int] = []

    def slowly(i: int) -> None:
        time.sleep(0.01)
        seen.append(i)

    with suppress(KeyboardInterrupt), BackgroundSink(slowly, depth=4) as sink:
        for i in range(4):
            sink.submit(i)
        raise KeyboardInterrupt
    assert seen == [0, 1, 2, 3]
    assert not alive("sink")


def test_abort_drops_what_is_queued() -> None:
    gate, seen = threading.Event(), []

    def wait(i: int) -> None:
        gate.wait(5)
        seen.append(i)

    sink = BackgroundSink(wait, depth=4)
    for i in range(4):
        sink.submit(i)
    wait_until(lambda: sink._executor._work_queue.qsize() == 3)
    threading.Timer(0.02, gate.set).start()
    sink.abort()
    assert seen == [0]
    with pytest.raises(InputError, match="closed"):
        sink.submit(5)


def test_depths_below_one_are_refused() -> None:
    with pytest.raises(InputError):
        prefetch([], depth=0)
    with pytest.raises(InputError):
        BackgroundSink(print, depth=0)
