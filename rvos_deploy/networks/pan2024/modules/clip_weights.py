"""Find the file of CLIP's weights: a path, or an open_clip tag in the cache or on its hub."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import open_clip

from rvos_deploy.errors import InputError

Result = TypeVar("Result")

HUB_SECONDS = 3.0
"""Seconds that the hub may take to answer. Its client retries for 90 s without a network."""

_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""File names in a repository of open_clip's hub, the preferred one first."""


def find_clip_weights(architecture: str, weights: str) -> str:
    """Return the path of a weights file for open_clip, fetched from the hub if needed.

    Args:
        architecture: an open_clip model name.
        weights: a file, or a tag of this architecture.

    Raises:
        InputError: ``weights`` is neither a file nor a tag, or the hub is unreachable. The message
            names the needed file, its address and the option for a local file.
    """
    if Path(weights).is_file():
        return weights
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights not in tags:
        known = f"tags: {', '.join(tags)}" if tags else "it has no published weights"
        raise InputError(
            f"CLIP weights '{weights}' are neither a file nor a tag of {architecture} ({known}); "
            "check the path that --clip-weights FILE was given"
        )
    repository = open_clip.get_pretrained_cfg(architecture, weights).get("hf_hub", "")
    name, _, file = repository.rpartition("/")
    if not name:
        return weights  # not published on the hub; open_clip fetches the tag
    return _from_hub(architecture, weights, name, (file,) if file else _FILES)


def _from_hub(architecture: str, tag: str, repository: str, files: tuple[str, ...]) -> str:
    import huggingface_hub

    endpoint = os.environ.get("HF_ENDPOINT")  # the hub's own variable, for mirrors
    for file in files:
        if isinstance(cached := huggingface_hub.try_to_load_from_cache(repository, file), str):
            return cached
    for file in files:
        address = huggingface_hub.hf_hub_url(repository, file, endpoint=endpoint)
        try:
            _within(
                HUB_SECONDS + 1,  # the client's timeout excludes that of the name server
                lambda address=address: huggingface_hub.get_hf_file_metadata(  # type: ignore[misc]
                    address, timeout=HUB_SECONDS
                ),
            )
        except huggingface_hub.errors.EntryNotFoundError:
            continue
        except Exception as error:
            raise _unreachable(architecture, tag, address, error) from error
        return str(huggingface_hub.hf_hub_download(repository, file, endpoint=endpoint))
    raise InputError(
        f"CLIP weights '{tag}' of {architecture} should be at {address}, which is not there; pass "
        "a file of open_clip weights with --clip-weights FILE"
    )


def _unreachable(architecture: str, tag: str, address: str, error: Exception) -> InputError:
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"CLIP weights '{tag}' of {architecture} are not on this machine, and {address} cannot be "
        f"fetched ({cause}); connect to the network, or fetch that file elsewhere and pass it with "
        "--clip-weights FILE"
    )


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """Call in a daemon thread; after ``seconds`` abandon the thread and raise TimeoutError."""
    outcome: list[Result | BaseException] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, name="hub", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
