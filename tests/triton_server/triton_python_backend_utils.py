"""Triton's module of the Python back end, as its documentation describes it, in one process.

A request for another model runs the graph's file of the repository, so the stream model meets what
a server would give it: tensors by name, errors as objects, and nothing else.
https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

TRITONSERVER_MEMORY_CPU = 0
models: dict[str, Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]] = {}
"""By name, what runs a model of the server; the tests fill it."""


class Tensor:
    def __init__(self, name: str, array: NDArray[Any]) -> None:
        assert isinstance(array, np.ndarray)
        assert array.flags.c_contiguous
        self._name, self._array = name, array

    @staticmethod
    def from_dlpack(name: str, array: Any) -> Tensor:
        return Tensor(name, np.from_dlpack(array))

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._array


class TritonError:
    def __init__(self, message: str) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


class InferenceResponse:
    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        self._outputs, self._error = list(output_tensors), error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs


class Logger:
    lines: ClassVar[list[str]] = []

    @staticmethod
    def log_info(text: str) -> None:
        Logger.lines.append(text)

    log_error = log_info


class PreferredMemory:
    def __init__(self, memory_type: int, memory_id: int) -> None:
        self.memory_type, self.memory_id = memory_type, memory_id


class InferenceRequest:
    def __init__(
        self,
        model_name: str = "",
        requested_output_names: Sequence[str] = (),
        inputs: Sequence[Tensor] = (),
        preferred_memory: PreferredMemory | None = None,
    ) -> None:
        self._model, self._names = model_name, list(requested_output_names)
        self._inputs = {tensor.name(): tensor for tensor in inputs}

    def requested_output_names(self) -> set[str]:
        # The server's own request gives a set, in no order.
        return set(self._names)

    def inputs(self) -> list[Tensor]:
        return list(self._inputs.values())

    def exec(self) -> InferenceResponse:
        if self._model not in models:
            return InferenceResponse(error=TritonError(f"unknown model {self._model}"))
        try:
            found = models[self._model]({n: t.as_numpy() for n, t in self._inputs.items()})
        except Exception as error:
            return InferenceResponse(error=TritonError(str(error)))
        return InferenceResponse([Tensor(name, found[name]) for name in self._names])


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return request._inputs.get(name)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    return next((one for one in response.output_tensors() if one.name() == name), None)
