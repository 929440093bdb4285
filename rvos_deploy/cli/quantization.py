"""Describe how a graph became int8, for ``export`` and ``inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rvos_deploy.bundle.manifest import QuantizationRecord

_SHOWN = 4
"""Number of names that are listed; the manifest lists all."""


def describe_quantization(record: QuantizationRecord) -> str:
    """Return layers, error and frames in one line."""
    total = record.int8_layers + len(record.float_layers)
    text = f"{record.int8_layers} of {total} layers of {record.graph}"
    if names := [_short(name) for name in record.float_layers]:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        text += f" (in float32: {', '.join(names[:_SHOWN])}{more})"
    worst = max(record.errors, key=lambda name: record.errors[name])
    return (
        f"{text}; error at most {record.errors[worst]:.2%} rms ({worst}; allowed "
        f"{record.maximum_error:.2%}) on {record.measuring_frames} frames of {record.source}, "
        f"ranges of {record.calibrating_frames} others"
    )


def _short(name: str) -> str:
    """Return the last parts of a weight's name."""
    return ".".join(name.split(".")[-3:])
