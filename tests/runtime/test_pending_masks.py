"""Results that are on their way."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.tensors import HostArray
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.pending_masks import PendingMasks
from rvos_deploy.video import Frame


class Once:
    """Gives its array once, after it failed as often as it is told to."""

    def __init__(self, array: NDArray[np.bool_], failures: int = 0) -> None:
        self.array, self.failures, self.asked = array, failures, 0

    def arrays(self) -> list[HostArray]:
        if self.failures:
            self.failures -= 1
            raise BackendError("not yet")
        self.asked += 1
        assert self.asked == 1, "asked twice"
        return [self.array]


def test_many_threads_ask_once() -> None:
    copy = Once(np.ones((2, 3), np.bool_))
    pending = PendingMasks(copy)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: pending.get(), range(64)))
    assert all(one is copy.array for one in found)


def test_a_failure_is_raised_where_it_is_asked_for() -> None:
    pending = PendingMasks(Once(np.ones(1, np.bool_), failures=1))
    with pytest.raises(BackendError, match="not yet"):
        pending.get()
    assert pending.get().all()


def test_results_can_be_sent_and_shown_before_they_are_there() -> None:
    copy = Once(np.eye(3, dtype=np.bool_)[None])
    scores = np.array([0.5], np.float32)
    frame = Frame(4, 0.25, np.zeros((3, 3, 3), np.uint8)).without_image()
    result = FrameMasks(frame, (3, 3), scores, (7,), ("a dog",), PendingMasks(copy))
    assert repr(result) == (
        "FrameMasks(index=4, pts=0.250, masks=bool[1, 3, 3], scores=float32[1], expressions=[7])"
    )
    assert copy.asked == 0
    sent = pickle.loads(pickle.dumps(result))
    assert (sent.masks == result.masks).all()
    assert (sent.index, sent.expressions, copy.asked) == (4, (7,), 1)
