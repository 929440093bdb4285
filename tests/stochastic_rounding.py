"""Networks in half precision whose operators round at random: they stand for other libraries, and
for other instruction sets of one library, which need not be there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_COPIES = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "as_strided", "alias", "detach"),
        *(
            "transpose",
            "permute",
            "t",
            "expand",
            "unsqueeze",
            "squeeze",
            "repeat",
            "clone",
            "copy_",
        ),
        *("slice", "select", "split", "split_with_sizes", "unbind", "cat", "stack", "lift_fresh"),
        *("index", "index_select", "gather", "embedding", "neg", "relu"),
    )
)
"""Operators that give none but numbers that they were given, or their opposites, or 0."""


class StochasticRounding(TorchDispatchMode):
    """Within it (``with``), operators of half precision compute in float32, and round to one of the
    two neighbours at random, the nearer one more often: unbiased, of at most one unit.

    Args:
        seed: of the draws.
        dtype: float16 or bfloat16; what is rounded to it.
    """

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype
        self._random = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operator."""
        name, given = func.overloadpacket.__name__, dict(kwargs or {})
        narrows = name == "_to_copy" and given.get("dtype") == self.dtype
        if narrows and args[0].dtype == torch.float32:
            return self.round(args[0])
        tensors = [x for x in tree_leaves((args, given)) if isinstance(x, Tensor)]
        halves = any(x.dtype == self.dtype for x in tensors)
        if not halves or name == "_to_copy" or name in _COPIES:
            return func(*args, **given)
        wide_args, wide_given = tree_map(self._widen, (args, given))
        outputs = func(*wide_args, **wide_given)
        # PyTorch's rule: a float32 tensor beside a half one makes the result float32.
        if any(x.dtype == torch.float32 and x.dim() > 0 for x in tensors):
            return outputs
        return tree_map(self._narrow, outputs)

    def _widen(self, x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) and x.dtype == self.dtype else x

    def _narrow(self, x: Any) -> Any:
        return self.round(x) if isinstance(x, Tensor) and x.dtype == torch.float32 else x

    def round(self, x: Tensor) -> Tensor:
        """Float32 to half precision: random bits are added below its last one, and cut off.

        Below the normal numbers of float16 (6e-5) PyTorch's own rounding follows.
        """
        cut = 13 if self.dtype == torch.float16 else 16
        shape, random = x.shape, self._random
        noise = torch.randint(0, 1 << cut, shape, generator=random, dtype=torch.int32)
        bits = x.contiguous().view(torch.int32) + noise
        return (bits & -(1 << cut)).view(torch.float32).to(self.dtype)
