"""Count what a replica does, in Prometheus' form, and join the counts of all replicas."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# A replica sends its text every two seconds; a dead one must not count for ever.
_STALE_SECONDS = 10.0
_MOST_REPORTS = 20
_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Measurements:
    """Count the requests, streams and frames of one replica. Threads may share it."""

    def __init__(self, replica: str) -> None:
        """``replica``: its name, a label of every value."""
        self._registry = CollectorRegistry()
        labels, values = ("replica",), (replica,)
        self._replica = replica
        self._requests = Counter(
            "rvos_requests",
            "Requests by kind and outcome.",
            (*labels, "kind", "outcome"),
            registry=self._registry,
        )
        self._streams = Gauge(
            "rvos_streams", "Streams that are open.", labels, registry=self._registry
        ).labels(*values)
        self._frames = Counter(
            "rvos_frames", "Frames whose masks were sent.", labels, registry=self._registry
        ).labels(*values)
        self._dropped = Counter(
            "rvos_frames_dropped", "Stale live frames.", labels, registry=self._registry
        ).labels(*values)
        self._interval = Histogram(
            "rvos_frame_interval_seconds",
            "Seconds between two frames of one stream.",
            labels,
            buckets=_SECONDS,
            registry=self._registry,
        ).labels(*values)

    def request(self, kind: str, outcome: str) -> None:
        """Count a request that has ended."""
        self._requests.labels(self._replica, kind, outcome).inc()

    def streams(self, count: int) -> None:
        """Set the number of open streams."""
        self._streams.set(count)

    def frame(self, seconds: float) -> None:
        """Count a frame that was sent, ``seconds`` behind the one before it."""
        self._frames.inc()
        self._interval.observe(seconds)

    def dropped(self, count: int) -> None:
        """Count stale frames."""
        self._dropped.inc(count)

    def text(self) -> str:
        """Return all values in Prometheus' text format."""
        return generate_latest(self._registry).decode()


def joined(texts: Iterable[str]) -> bytes:
    """Join the texts of several replicas into one, in which each metric stands once."""
    families: dict[str, Metric] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            known = families.setdefault(family.name, family)
            if known is not family:
                known.samples.extend(family.samples)
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


class Board:
    """Hold the newest text of every replica, and what went wrong; an actor of its own."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[float, str]] = {}
        self._reports: deque[str] = deque(maxlen=_MOST_REPORTS)
        self._ready = False

    def put(self, replica: str, text: str) -> list[str]:
        """Replace a replica's text, and return the texts of all that still send theirs."""
        now = time.monotonic()
        self._texts[replica] = now, text
        self._texts = {
            name: kept for name, kept in self._texts.items() if now - kept[0] < _STALE_SECONDS
        }
        return [kept for _, kept in self._texts.values()]

    def report(self, text: str) -> None:
        """Keep a text for the operator; of many, the newest ones."""
        self._reports.append(text)

    def take_reports(self) -> list[str]:
        """Return the texts for the operator, once."""
        reports = list(self._reports)
        self._reports.clear()
        return reports

    def set_ready(self) -> None:
        """Say that all replicas were ready."""
        self._ready = True

    def was_ready(self) -> bool:
        """Tell whether all replicas were ready once."""
        return self._ready
