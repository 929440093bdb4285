"""How long the stages of a stream take."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class StageTimes:
    """Seconds spent in every stage: how often, in all, and the longest."""

    _count: dict[str, int] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _longest: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        """Count one."""
        self._count[stage] = self._count.get(stage, 0) + 1
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        self._longest[stage] = max(self._longest.get(stage, 0.0), seconds)

    def summary(self) -> dict[str, dict[str, float]]:
        """Milliseconds by stage."""
        return {
            stage: {
                "count": count,
                "mean_milliseconds": 1e3 * self._seconds[stage] / count,
                "longest_milliseconds": 1e3 * self._longest[stage],
            }
            for stage, count in self._count.items()
        }
