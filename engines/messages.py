"""Keep TensorRT's errors instead of printing them; the first useful one goes into our message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorrt as trt


class Messages:
    """The errors of one build in order, without repetitions."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def add(self, text: str) -> None:
        """Keep an error that was not kept before."""
        line = " ".join(text.split())
        if line not in self.errors:
            self.errors.append(line)

    @property
    def cause(self) -> str:
        """The first useful error; without a driver, every build also reports its absence."""
        useful = [line for line in self.errors if "catchCudaError" not in line]
        return (useful or self.errors or ["TensorRT gave no reason"])[0]


def make_logger(trt: Any, messages: Messages) -> trt.ILogger:
    """Return a TensorRT logger that keeps errors. It must outlive the objects that use it.

    Warnings are dropped: TensorRT-RTX gives a hundred about names within the plugin's function
    body.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                messages.add(message)

    return Logger()
