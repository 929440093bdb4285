"""Compare a running Triton server with a bundle: ``python -m rvos_deploy.triton.check``.

It sends the bundle's golden clip, and compares the masks that come back with those that the bundle
brings. Exit code 1: they differ. It needs ``tritonclient[grpc]``.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.errors import BackendError, InputError, ParityError, one_line
from rvos_deploy.parity.golden_vectors import GoldenClip, read_golden_clip
from rvos_deploy.triton.config_text import EXPRESSIONS, FRAME, SETTINGS
from rvos_deploy.triton.repository import STREAM

MOST_DIFFERENT: Mapping[str, float] = {"fp32": 0.001, "fp16": 0.01, "bf16": 0.03, "int8": 0.03}
"""Share of a mask's pixels that may differ, by the bundle's precision: another library, or a GPU,
rounds logits near 0 differently. A wrong graph, or a frame in the wrong order, changes far more."""
_PRINTED = 100


@with_error_lines
def main(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="Folder, or name of a packaged one.")
    ],
    url: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="Of the server's gRPC.")
    ] = "localhost:8001",
    name: Annotated[str, typer.Option(metavar="NAME", help="As in export-triton.")] = "rvos",
    seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Time that a frame may take.")
    ] = 120.0,
) -> None:
    """Send a bundle's golden clip to a Triton server, and compare its masks with the bundle's."""
    opened = open_bundle(Path(bundle))
    clip = read_golden_clip(opened)
    found = ask(url, f"{name}_{STREAM}", clip, seconds)
    if found.shape != clip.masks.shape:
        raise ParityError(
            f"the server returned masks {list(found.shape)}, the bundle has "
            f"{list(clip.masks.shape)}; export-triton this bundle again"
        )
    different, allowed = (found != clip.masks).mean(axis=(2, 3)), MOST_DIFFERENT[opened.precision]
    typer.echo(
        f"{len(clip.frames)} frames, {len(clip.texts)} expressions: at most "
        f"{different.max():.4%} of a mask's pixels differ (allowed {allowed:.1%})"
    )
    if different.max() > allowed:
        frame, row = (int(at) for at in np.unravel_index(different.argmax(), different.shape))
        raise ParityError(
            f"the server's masks are not the bundle's (most in frame {frame}, "
            f"'{clip.texts[row][:_PRINTED]}'); export-triton this bundle again"
        )


def ask(url: str, model: str, clip: GoldenClip, seconds: float) -> NDArray[np.bool_]:
    """Send a clip as one sequence, and return the masks bool [T,E,H,W].

    Raises:
        InputError: the client is not installed.
        BackendError: the server does not answer, or refuses.
        ParityError: an answer holds no masks, or those of another size than the first.
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

    first = [
        tensor(EXPRESSIONS.name, _strings(clip.texts), "BYTES"),
        tensor(SETTINGS.name, _strings([json.dumps(clip.settings)]), "BYTES"),
    ]
    # Sequences belong to the server, not to a client: a fixed number would end another's.
    sequence, last, masks = secrets.randbelow(2**62) + 1, len(clip.frames) - 1, []
    with _client(client, url) as server:
        for number, frame in enumerate(clip.frames):
            answer = server.infer(
                model,
                [tensor(FRAME.name, frame, "UINT8"), *([] if number else first)],
                outputs=[client.InferRequestedOutput("MASK")],
                sequence_id=sequence,
                sequence_start=number == 0,
                sequence_end=number == last,
                client_timeout=seconds,
            )
            masks.append(_mask_of(answer, number))
            if masks[-1].shape != masks[0].shape:
                raise ParityError(
                    f"the server returned masks {list(masks[0].shape)} for frame 0, and "
                    f"{list(masks[-1].shape)} for frame {number}, though all frames have one size; "
                    "export-triton this bundle again"
                )
    return np.stack(masks)


def _mask_of(answer: Any, frame: int) -> NDArray[np.bool_]:
    """Return the masks of one answer. Raises ParityError: it holds none."""
    try:
        mask = answer.as_numpy("MASK")
    except (ValueError, TypeError) as error:
        found = f"a MASK that cannot be read ({one_line(error)})"
    else:
        if isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
            return mask
        found = "no MASK" if mask is None else f"a MASK of {getattr(mask, 'dtype', type(mask))}"
    raise ParityError(
        f"the server returned {found} for frame {frame}, and bool [E, H, W] is needed; "
        "export-triton this bundle again"
    )


@contextmanager
def _client(client: Any, url: str) -> Iterator[Any]:
    """Yield a client of the server, whose errors are BackendErrors."""
    try:
        server = client.InferenceServerClient(url)
    except Exception as error:
        raise BackendError(f"{url} is no address of gRPC ({one_line(error)})") from error
    try:
        yield server
    except client.InferenceServerException as error:
        raise BackendError(
            f"{url} does not serve the clip: {one_line(error)}; is tritonserver running there, "
            "with the model READY in its log?"
        ) from error
    finally:
        server.close()


def _strings(texts: list[str]) -> NDArray[np.object_]:
    return np.array([text.encode() for text in texts], dtype=np.object_)


if __name__ == "__main__":
    typer.run(main)
