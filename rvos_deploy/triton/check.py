"""Compare a running Triton server with a bundle: ``python -m rvos_deploy.triton.check``.

It sends the bundle's golden clip, and compares the masks that come back with those of the bundle on
this machine. Exit code 1: they differ. It needs ``tritonclient[grpc]``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.errors import BackendError, InputError, ParityError, one_line
from rvos_deploy.parity.golden_vectors import read_golden_clip
from rvos_deploy.triton.config_text import EXPRESSIONS, FRAME, SETTINGS
from rvos_deploy.triton.repository import STREAM

MOST_DIFFERENT = 0.001
"""Share of a mask's pixels that may differ: another library, or a GPU, rounds logits near 0
differently."""


@with_error_lines
def main(
    bundle: Annotated[str, typer.Argument(help="Bundle, or name of a packaged one.")],
    url: Annotated[str, typer.Argument(help="HOST:PORT of the server's gRPC.")] = "localhost:8001",
    name: Annotated[str, typer.Option(help="As in export-triton.")] = "rvos",
) -> None:
    """Send the golden clip to a server, and compare its masks with the bundle's."""
    clip = read_golden_clip(open_bundle(Path(bundle)))
    found = ask(url, f"{name}_{STREAM}", clip.frames, clip.texts, clip.settings)
    different = float((found != clip.masks).mean(axis=(2, 3)).max())
    typer.echo(
        f"{len(clip.frames)} frames, {len(clip.texts)} expressions: at most "
        f"{different:.4%} of a mask's pixels differ (allowed {MOST_DIFFERENT:.1%})"
    )
    if different > MOST_DIFFERENT:
        raise ParityError("the server's masks are not the bundle's; export-triton again")


def ask(
    url: str,
    model: str,
    frames: NDArray[np.uint8],
    texts: list[str],
    settings: dict[str, Any],
) -> NDArray[np.bool_]:
    """Send frames [T,H,W,3] as one sequence; return the masks bool [T,E,H,W].

    Raises:
        InputError: the client is not installed.
        BackendError: the server does not answer, or refuses.
    """
    try:
        import tritonclient.grpc as client
    except ImportError as error:
        raise InputError(
            "the check needs 'tritonclient'; pip install 'tritonclient[grpc]'"
        ) from error

    def tensor(name: str, array: NDArray[Any], kind: str) -> Any:
        made = client.InferInput(name, list(array.shape), kind)
        made.set_data_from_numpy(array)
        return made

    server, masks = client.InferenceServerClient(url), []
    for number, frame in enumerate(frames):
        inputs = [tensor(FRAME.name, frame, "UINT8")]
        if number == 0:
            sentences = np.array([text.encode() for text in texts], dtype=np.object_)
            chosen = np.array([json.dumps(settings).encode()], dtype=np.object_)
            inputs.append(tensor(EXPRESSIONS.name, sentences, "BYTES"))
            inputs.append(tensor(SETTINGS.name, chosen, "BYTES"))
        try:
            answer = server.infer(
                model,
                inputs,
                sequence_id=1,
                sequence_start=number == 0,
                sequence_end=number == len(frames) - 1,
            )
        except client.InferenceServerException as error:
            raise BackendError(f"{url} refuses: {one_line(error)}") from error
        masks.append(answer.as_numpy("MASK"))
    return np.stack(masks)


if __name__ == "__main__":
    typer.run(main)
