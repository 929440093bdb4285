"""TensorRT's errors, kept instead of printed: the first that tells something goes into our line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorrt as trt


class Messages:
    """Errors of one build, each kept once, in order."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def add(self, text: str) -> None:
        """Keep an error, unless it was said before."""
        line = " ".join(text.split())
        if line not in self.errors:
            self.errors.append(line)

    @property
    def cause(self) -> str:
        """The first error that tells something: without a driver, its absence is told each time."""
        telling = [line for line in self.errors if "catchCudaError" not in line]
        return (telling or self.errors or ["TensorRT gave no reason"])[0]


def make_logger(trt: Any, messages: Messages) -> trt.ILogger:
    """A TensorRT logger that keeps errors. It must outlive what it is given to.

    Warnings are dropped: TensorRT-RTX gives a hundred about names within the plugin's body.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                messages.add(message)

    return Logger()
