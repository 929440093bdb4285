"""Measure how near a half-precision network comes to the end of its type's range, on real frames.

``python -m rvos_deploy.benchmarks.studies.magnitudes CONFIG --video FILE --checkpoint F
[--json F]``

The study runs the whole network in PyTorch as ``export --precision`` makes it, with its islands of
float32, and checks the half-precision outputs of every operator, inside modules and between them.
No number may be infinite or NaN. The largest magnitude must stay below a quarter of the type's
maximum (16,376 for float16), because other frames may give larger numbers. Otherwise the exit code
is 1.

The arithmetic is real float16, on a CPU with float32 sums inside products and convolutions, as on
tensor cores. So an overflow shows as one. It is slow: use small sizes and few frames.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.console.options import parse_size
from rvos_deploy.environment import machine, versions
from rvos_deploy.errors import ParityError
from rvos_deploy.graph_io.frame_geometry import letterbox, resize_frame
from rvos_deploy.graph_io.probe import PROBE_EXPRESSIONS
from rvos_deploy.json_file import write_json
from rvos_deploy.networks.modules.float32_islands import HIDDEN
from rvos_deploy.networks.modules.precision import DTYPES
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.modules.inference import segment_clip, tokenize
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.networks.pan2024.modules.precision import set_precision
from rvos_deploy.video import read_video

SHARE = 0.25
"""The share of the type's maximum that may be used."""
TOP = 10
HIDDEN_WITHIN = 0.05
"""Logits of hidden keys are ``HIDDEN`` plus some tens, within this share of it."""
EVERY = 10
"""Every tenth frame of a video is used, because neighbours are alike."""


@dataclass
class Layer:
    """The outputs of one operator of one module, over all frames.

    Args:
        name: the module and the operator.
        magnitude: the largest finite magnitude.
        unhidden: the largest magnitude without the logits of hidden keys, which are about
            ``HIDDEN`` by design and would fill every list.
        not_finite: how many infinities and NaN the operator made from finite inputs.
    """

    name: str
    magnitude: float = 0.0
    unhidden: float = 0.0
    not_finite: int = 0

    def update(self, numbers: Tensor) -> None:
        """Include finite numbers."""
        self.magnitude = max(self.magnitude, float(numbers.abs().max()))
        if self.magnitude > self.unhidden:
            shown = numbers[(numbers - HIDDEN).abs() > HIDDEN_WITHIN * abs(HIDDEN)]
            if shown.numel():
                self.unhidden = max(self.unhidden, float(shown.abs().max()))


@dataclass
class Magnitudes(TorchDispatchMode):
    """Watches every operator while it is active (``with``); modules give the names.

    Args:
        root: the module whose submodules give the names.
        dtype: outputs of other types, the float32 islands, are ignored.
    """

    root: nn.Module
    dtype: torch.dtype
    layers: dict[str, Layer] = field(default_factory=dict)
    _path: list[str] = field(default_factory=lambda: ["network"])

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator, then record its outputs."""
        output = func(*args, **(kwargs or {}))
        # Views and, in eval mode, dropout return their inputs.
        if not func.is_view and func.overloadpacket.__name__ != "dropout":
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor) and tensor.dtype == self.dtype and tensor.numel():
                    self._record(func, tensor, args)
        return output

    def _record(self, func: Any, tensor: Tensor, args: tuple[Any, ...]) -> None:
        name = f"{self._path[-1]} {func.overloadpacket.__name__}"
        layer = self.layers.setdefault(name, Layer(name))
        finite = torch.isfinite(tensor)
        if bool(finite.any()):
            layer.update(tensor[finite].float())
        if bool(finite.all()):
            return
        inputs = [x for x in tree_leaves(args) if isinstance(x, Tensor) and x.is_floating_point()]
        if all(bool(torch.isfinite(x).all()) for x in inputs):
            layer.not_finite += int((~finite).sum())

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Track which module runs."""

        def entered(name: str) -> Any:
            return lambda module, inputs: self._path.append(name)

        def left(module: nn.Module, inputs: Any, output: Any) -> None:
            self._path.pop()

        hooks = []
        for name, module in self.root.named_modules():
            if name:
                hooks.append(module.register_forward_pre_hook(entered(name)))
                hooks.append(module.register_forward_hook(left, always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def measure(
    network: RvosNetwork, frames: Sequence[Tensor], token_ids: Tensor, dtype: torch.dtype
) -> list[Layer]:
    """Segment a clip, and list the layers that computed in ``dtype``, the largest (unhidden) first.

    Args:
        network: in eval mode, in its precision (:func:`set_precision`).
        frames: T frames uint8 [1,H,W,3].
        token_ids: int64 [E,L].
        dtype: float16 or bfloat16.
    """
    watch = Magnitudes(network, dtype)
    with torch.no_grad(), watch.naming(), watch:
        segment_clip(network, frames, token_ids, "top1")
    return sorted(watch.layers.values(), key=lambda layer: -layer.unhidden)


def join(clips: Sequence[Sequence[Layer]]) -> list[Layer]:
    """Join the layers of several clips, each at its worst, the largest (unhidden) first."""
    joined: dict[str, Layer] = {}
    for layer in (layer for clip in clips for layer in clip):
        known = joined.setdefault(layer.name, Layer(layer.name))
        known.magnitude = max(known.magnitude, layer.magnitude)
        known.unhidden = max(known.unhidden, layer.unhidden)
        known.not_finite += layer.not_finite
    return sorted(joined.values(), key=lambda layer: -layer.unhidden)


def require_headroom(layers: Sequence[Layer], limit: float) -> None:
    """Raise ParityError when a layer gave an infinity, NaN, or a magnitude above ``limit``."""
    broken = [layer for layer in layers if layer.not_finite]
    if broken:
        raise ParityError(
            f"{len(broken)} layers gave infinities or NaN, the worst {broken[0].name} with "
            f"{broken[0].not_finite}; export with --precision bf16 or fp32"
        )
    if not layers:
        raise ParityError("no layer gave half precision; nothing was measured, choose fp16 or bf16")
    worst = max(layers, key=lambda layer: layer.magnitude)
    if worst.magnitude > limit:
        raise ParityError(
            f"{worst.name} gave {worst.magnitude:.0f}, at most {limit:.0f} is allowed; "
            "export with --precision bf16 or fp32"
        )


def clip_frames(video: Path, box: tuple[int, int], count: int) -> list[Tensor]:
    """Return every tenth frame of a video, at most ``count``, as network inputs uint8 [1,H,W,3].

    Raises:
        VideoError: the video cannot be read.
    """
    frames = islice(read_video(video), 0, EVERY * count, EVERY)
    images = [frame.host_image() for frame in frames]
    geometry = letterbox(images[0].shape[:2], box)
    return [torch.from_numpy(resize_frame(image, geometry)) for image in images]


@with_error_lines
def main(
    config: Annotated[str, typer.Argument(help="Preset.")],
    video: Annotated[list[Path], typer.Option(help="File or folder of frames; may be repeated.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Trained weights.")] = None,
    clip_weights: Annotated[str | None, typer.Option(help="Of the frozen CLIP part.")] = None,
    random_weights: Annotated[bool, typer.Option(help="No weights: shows the way only.")] = False,
    expression: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    precision: Annotated[Literal["fp16", "bf16"], typer.Option(help="Number format.")] = "fp16",
    size: Annotated[str | None, typer.Option(help="Box HxW. Default: the preset's.")] = None,
    frames: Annotated[int, typer.Option(help="Of each video.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it there.")] = None,
) -> None:
    """Report the largest magnitudes of a network in half precision; exit code 1 above the limit."""
    from rvos_deploy.export.weights import Weights, load_network
    from rvos_deploy.training.clips import training_tokenizer

    weights = Weights(checkpoint, clip_weights, random_weights)
    network = set_precision(load_network(preset(config), weights), precision)
    box = parse_size(size) or network.config.input_size
    texts = tuple(expression or PROBE_EXPRESSIONS)
    ids = tokenize(training_tokenizer(), texts)
    clips = [clip_frames(path, box, frames) for path in video]
    layers = join([measure(network, clip, ids, DTYPES[precision]) for clip in clips])
    limit = SHARE * torch.finfo(DTYPES[precision]).max
    _print(layers, limit)
    if json_file is not None:
        options = {
            "video": video,
            "checkpoint": checkpoint,
            "clip-weights": clip_weights,
            "random-weights": random_weights,
            "expression": expression,
            "precision": precision,
            "size": size,
            "frames": frames,
        }
        write_json(
            json_file,
            {
                "schema": "rvos-deploy/benchmark/magnitudes/1",
                "command": _command(config, options),
                "weights": "random, seed 0: they say nothing about trained ones"
                if random_weights
                else f"{checkpoint}, CLIP part {clip_weights or 'within'}",
                "precision": precision,
                "clips": [
                    {"video": str(path), "frames": len(clip), "input": list(clip[0].shape[1:3])}
                    for path, clip in zip(video, clips, strict=True)
                ],
                "expressions": list(texts),
                **_figures(layers, limit),
                "versions": versions("torch", "open_clip_torch"),
                "machine": machine(),
            },
        )
    require_headroom(layers, limit)


def _figures(layers: Sequence[Layer], limit: float) -> dict[str, Any]:
    return {
        "limit": limit,
        "layers": len(layers),
        "not_finite": [asdict(layer) for layer in layers if layer.not_finite],
        "largest": max((layer.magnitude for layer in layers), default=0.0),
        "hidden_logit": HIDDEN,
        "top": [
            {**asdict(layer), "share_of_limit": layer.unhidden / limit} for layer in layers[:TOP]
        ],
    }


def _command(config: str, options: Mapping[str, Any]) -> str:
    """Return the command that gives the same record again."""
    words = ["python", "-m", "rvos_deploy.benchmarks.studies.magnitudes", config]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value:
            for one in value if isinstance(value, list) else [value]:
                words += [f"--{name}", str(one)]
    return shlex.join(words)


def _print(layers: Sequence[Layer], limit: float) -> None:
    broken = sum(layer.not_finite > 0 for layer in layers)
    largest = max((layer.magnitude for layer in layers), default=0.0)
    typer.echo(
        f"{len(layers)} layers, {broken} with infinities or NaN; largest magnitude {largest:.0f}, "
        f"limit {limit:.0f}; without the logits of hidden keys (about {HIDDEN:.0f}):"
    )
    for layer in layers[:TOP]:
        typer.echo(f"{layer.unhidden:>12.2f} {layer.unhidden / limit:>8.2%}  {layer.name}")


if __name__ == "__main__":
    typer.run(main)
