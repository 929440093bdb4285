"""Run one graph from several threads, and compare with runs one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends.base import Graph
from rvos_deploy.runtime.backends.openvino.backend import REPEATS


def assert_threads_get_their_own_outputs(
    graph: Graph, inputs: Sequence[Mapping[str, Tensor]]
) -> None:
    """Run each of these inputs three times, in as many threads as there are inputs."""
    for one in inputs[:REPEATS]:
        graph.run(one)  # so that all later runs use one compiled model
    alone = [graph.run(one) for one in inputs]
    with ThreadPoolExecutor(len(inputs)) as threads:
        together = list(threads.map(graph.run, [*inputs] * 3))
    for index, outputs in enumerate(together):
        for name, value in outputs.items():
            assert np.array_equal(value, alone[index % len(inputs)][name]), name
