"""Segment many videos on Ray: jobs, status file, workers, live table.

``SegmentVideos`` is for ``ray.data.Dataset.map_batches``. Importing this package does not import
Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rvos_deploy.lazy_names import lazy_names

if TYPE_CHECKING:
    from rvos_deploy.batch.ray_data import SegmentVideos

__all__ = ["SegmentVideos"]

__getattr__ = lazy_names(__name__, {"SegmentVideos": "rvos_deploy.batch.ray_data"})
