"""Segment videos in a Ray Data pipeline: read a table, segment, filter, write a table.

    pip install 'rvos-deploy[cpu,ray]' 'ray[data]'
    python examples/ray_data.py videos.parquet OUT

The table has the columns ``video`` and ``expression``, as for ``rvos-deploy batch``.
"""

from __future__ import annotations

import os
import sys

# Before Ray is imported: it sends no statistics, and listens on loopback only, on Linux too.
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")

import pyarrow as pa
import ray

from rvos_deploy.batch import SegmentVideos


def one_row_a_video(group: pa.Table) -> pa.Table:
    """Collect the expressions of a video."""
    texts = pa.array([group["expression"].to_pylist()])
    return pa.table({"video": group["video"][:1], "expressions": texts})


def main(table: str, out: str) -> None:
    """Segment every video of ``table`` into ``out``, and print what became of it."""
    ray.init(address="local", include_dashboard=False)
    rows = ray.data.read_parquet(table)
    videos = rows.groupby("video").map_groups(one_row_a_video, batch_format="pyarrow")
    results = videos.map_batches(
        SegmentVideos,
        fn_constructor_kwargs={"out": out, "bundle": "tiny", "threads": 1},
        batch_size=1,  # a video is large work, and batches are given to idle actors
        concurrency=1,
        num_cpus=1,
    )
    for row in results.select_columns(["video", "state", "frames", "error"]).take_all():
        print(row["video"], row["state"], row["frames"], row["error"])
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
