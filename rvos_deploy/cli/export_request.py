"""Hold the given options of ``export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rvos_deploy.errors import InputError
from rvos_deploy.export.file_options import FileOptions

if TYPE_CHECKING:
    from rvos_deploy.export.calibration import CalibrationOptions
    from rvos_deploy.export.graph_form import GraphForm
    from rvos_deploy.export.source import Pointer, Store
    from rvos_deploy.graph_io.graph_spec import Precision


@dataclass(frozen=True)
class ExportRequest:
    """Hold the options of ``export``; None: not given. The command's help explains them."""

    source: str
    out: Path
    files: FileOptions
    which: Pointer | None
    clip_weights: str | None
    random: bool
    seed: int
    store: Store
    precision: Precision
    calibration: CalibrationOptions | None
    size: tuple[int, int] | None
    short_side: int | None
    opset: int | None
    static_shapes: str | None
    threshold: float | None
    minimum_j_and_f: float
    maximum_slot_excess: float | None
    overwrite: bool

    def form(self) -> GraphForm:
        """Return the form of the graph files: opset and fixed sizes.

        Raises InputError: ``--static-shapes`` is malformed.
        """
        from rvos_deploy.export.graph_form import GraphForm, read_static_shapes

        text = self.static_shapes
        static = None if text is None else read_static_shapes(text)
        return GraphForm(self.opset, static, self.size)


def calibration_options(
    precision: Precision, source: str | None, frames: int | None, maximum_error: float | None
) -> CalibrationOptions | None:
    """Return the frames for int8; None in other precisions.

    Args:
        precision: of the graphs.
        source: video or data set; None: not given.
        frames: their number; None: the default.
        maximum_error: the allowed error; None: the default.

    Raises InputError: they do not fit the precision, or their source does not exist.
    """
    from rvos_deploy.export.calibration import (
        DEFAULT_FRAMES,
        MAXIMUM_ERROR,
        CalibrationOptions,
        check_calibration,
    )

    options = None
    if source is not None:
        options = CalibrationOptions(
            source,
            DEFAULT_FRAMES if frames is None else frames,
            MAXIMUM_ERROR if maximum_error is None else maximum_error,
        )
    else:
        for name, given in (
            ("--calibration-frames", frames),
            ("--maximum-int8-error", maximum_error),
        ):
            if given is not None:
                raise InputError(f"{name} needs --calibration, which names a video or data set")
    check_calibration(precision, options)
    return options
