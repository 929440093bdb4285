"""Sum up the time that the stages of a stream take."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class StageTimes:
    """Hold the number of runs, total seconds and longest run of every stage."""

    _count: dict[str, int] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _longest: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        """Add one run of a stage."""
        self._count[stage] = self._count.get(stage, 0) + 1
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        self._longest[stage] = max(self._longest.get(stage, 0.0), seconds)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return milliseconds by stage."""
        return {
            stage: {
                "count": count,
                "mean_milliseconds": 1e3 * self._seconds[stage] / count,
                "longest_milliseconds": 1e3 * self._longest[stage],
            }
            for stage, count in self._count.items()
        }
