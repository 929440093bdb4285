"""A second family of networks, outside the package: two graphs, no memory, no text encoder.

``toy_encoder`` averages colours at stride 4; ``toy_head`` compares them with the colour that an
expression names. A pixel belongs to the mask where the colour is near. Slow and simple on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor as TorchTensor
from torch import nn

from rvos_deploy.bundle.manifest import NetworkOrigin, Origin, WeightsRecord
from rvos_deploy.errors import BundleError, InputError
from rvos_deploy.graph_io.frame_geometry import FrameGeometry, letterbox, resize_frame
from rvos_deploy.graph_io.graph_spec import AxisSpec, GraphSpec, TensorSpec
from rvos_deploy.graph_io.probe import PROBE_EXPRESSIONS
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.networks.clip_probe import ClipProbe
from rvos_deploy.networks.export_graph import ClipAnswer, ExportableNetwork, Graph
from rvos_deploy.networks.network import Network
from rvos_deploy.networks.steps import GraphCalls, Replay, Steps
from rvos_deploy.stream_settings import StreamSettings

COLOURS = {"red": (230, 60, 40), "blue": (60, 90, 240), "square": (230, 60, 40)}
OTHER = (60, 90, 240)

HEIGHT, WIDTH, ROWS = AxisSpec("H", 32, 1024, 32), AxisSpec("W", 32, 1024, 32), AxisSpec("E", 1, 16)
ENCODER = GraphSpec(
    "toy_encoder",
    (TensorSpec("frame", "uint8", (1, "H", "W", 3)),),
    (TensorSpec("colours", "float32", (1, 3, "H/4", "W/4")),),
    (HEIGHT, WIDTH),
    1e-4,
)
HEAD = GraphSpec(
    "toy_head",
    (
        TensorSpec("colours", "float32", (1, 3, "H/4", "W/4")),
        TensorSpec("wanted", "float32", ("E", 3)),
    ),
    (TensorSpec("mask_logits", "float32", ("E", "H/4", "W/4")),),
    (HEIGHT, WIDTH, ROWS),
    1e-4,
)


@dataclass(frozen=True)
class ToyConfig:
    name: str = "toy"
    nearness: float = 0.2
    input_size: tuple[int, int] = (96, 160)
    threshold: float = 0.5

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "input_size": list(self.input_size)}


@dataclass(frozen=True)
class ColourText:
    text: str
    colour: NDArray[np.float32]


class Words:
    """The toy's tokenizer: a list of words with their colours."""

    def __init__(self, file: Path, content: bytes) -> None:
        try:
            self.colours = json.loads(content)["colours"]
        except (ValueError, KeyError) as error:
            raise BundleError(f"{file} is no list of colours ({error}); export again") from error

    def __call__(self, text: str) -> NDArray[np.float32]:
        if not text.split():
            raise InputError(f"expression {text!r} is empty; name a colour")
        found = [self.colours[word] for word in text.split() if word in self.colours]
        return np.array(found[0] if found else OTHER, np.float32) / 255


@dataclass(frozen=True)
class Toy(Network):
    _config: ToyConfig
    family = "toy"
    graphs = ("toy_encoder", "toy_head")
    frame_graphs = ("toy_encoder",)

    @property
    def config(self) -> ToyConfig:
        return self._config

    def check_contracts(self, graphs: Mapping[str, GraphSpec]) -> None:
        if dict(graphs) != {"toy_encoder": ENCODER, "toy_head": HEAD}:
            raise BundleError("the manifest's contracts are not the toy's; export again")

    def probe_cases(self) -> list[dict[str, int]]:
        return [{"H": 32, "W": 64, "E": 1}, {"H": 96, "W": 160, "E": 3}]

    def geometry(
        self, display: tuple[int, int], settings: StreamSettings, fixed: tuple[int, int] | None
    ) -> FrameGeometry:
        return letterbox(display, settings.size or self._config.input_size)

    def tokenizer(self, file: Path, content: bytes, graphs: Mapping[str, GraphSpec]) -> Words:  # type: ignore[override]
        return Words(file, content)

    def encode_text(self, calls: GraphCalls, tokenizer: Words, text: str) -> ColourText:  # type: ignore[override]
        return ColourText(text, tokenizer(text))

    def steps(self, calls: GraphCalls, settings: StreamSettings) -> ToySteps:
        return ToySteps(calls, self._config, settings)


class ToySteps(Steps):
    def __init__(self, calls: GraphCalls, config: ToyConfig, settings: StreamSettings) -> None:
        self.calls, self.config, self.settings = calls, config, settings
        self.texts: dict[int, ColourText] = {}
        self.frames = 0

    def add(self, number: int, text: ColourText) -> None:  # type: ignore[override]
        self.texts[number] = text

    def remove(self, number: int) -> None:
        del self.texts[number]

    def start(self, image: Tensor, occasion: str) -> ToyFrame:
        return ToyFrame(self, self.calls.run("toy_encoder", {"frame": image}, occasion)["colours"])

    def decide(self, occasion: str) -> ToySteps:
        return self

    def mask_maker(
        self, kept: Sequence[Tensor], then: Sequence[int], now: Sequence[int], occasion: str
    ) -> ToyMasks:
        wanted = np.stack([self.texts[number].colour for number in now])
        return ToyMasks(self.calls, kept[0], wanted, occasion)

    def record_choices(self, replayed: NDArray[np.int64] | None = None) -> ToyChoices:
        return ToyChoices(self)


@dataclass(frozen=True)
class ToyFrame:
    steps: ToySteps
    colours: Tensor

    def advance(self) -> tuple[Tensor, ...]:
        self.steps.frames += 1
        return (self.colours,)


@dataclass(frozen=True)
class ToyMasks:
    calls: GraphCalls
    colours: Tensor
    wanted: NDArray[np.float32]
    occasion: str

    @property
    def scores(self) -> NDArray[np.float32]:
        return np.ones((len(self.wanted), 1), np.float32)

    @property
    def thresholds(self) -> NDArray[np.float32]:
        return np.full(len(self.wanted), 0.5, np.float32)

    def mask_logits(self, thresholds: NDArray[np.float32]) -> Tensor:
        inputs = {"colours": self.colours, "wanted": self.wanted}
        return self.calls.run("toy_head", inputs, self.occasion)["mask_logits"]


@dataclass(frozen=True)
class ToyChoices:
    """The toy chooses nothing."""

    steps: ToySteps

    def orders(self) -> NDArray[np.int64]:
        return np.zeros((len(self.steps.texts), self.steps.frames, 0), np.int64)

    def replay(self) -> Replay:
        return Replay()


class Encoder(nn.Module):
    def forward(self, frame: TorchTensor) -> TorchTensor:
        pixels = frame.permute(0, 3, 1, 2).float() / 255
        return nn.functional.avg_pool2d(pixels, 4)


class Head(nn.Module):
    def __init__(self, nearness: float) -> None:
        super().__init__()
        self.nearness = nn.Parameter(torch.tensor(nearness))

    def forward(self, colours: TorchTensor, wanted: TorchTensor) -> TorchTensor:
        apart = (colours - wanted[:, :, None, None]).square().sum(dim=1)
        return self.nearness - apart


def load() -> tuple[ExportableNetwork, WeightsRecord]:
    """The toy with its one weight, as the exporter takes it."""
    config = ToyConfig()
    encoder, head = Encoder().eval(), Head(config.nearness).eval()

    def segment(probe: ClipProbe, tokenizer: Words, instead: object) -> ClipAnswer:
        wanted = torch.from_numpy(np.stack([tokenizer(text) for text in PROBE_EXPRESSIONS]))
        with torch.inference_mode():
            maps = [
                head(encoder(torch.from_numpy(resize_frame(frame, probe.geometry))), wanted)
                for frame in probe.frames
            ]
        logits = torch.stack(maps, dim=1).numpy()
        return ClipAnswer(logits, np.zeros((*logits.shape[:2], 0), np.int64))

    network = ExportableNetwork(
        Toy(config),
        (Graph(encoder, ENCODER), Graph(head, HEAD)),
        1,
        lambda file: file.write_text(json.dumps({"colours": COLOURS}), encoding="utf-8"),
        segment,  # type: ignore[arg-type]
    )
    record = WeightsRecord(True, 0, None, None, "fp32", None, Origin(NetworkOrigin(random_seed=0)))
    return network, record


def make(model: Mapping[str, object]) -> Network:
    """What the registry calls for a manifest's ``model``."""
    known = ToyConfig().as_dict()
    if set(model) != set(known):
        raise InputError(f"the toy has {', '.join(known)}")
    return Toy(ToyConfig(**{**model, "input_size": tuple(model["input_size"])}))  # type: ignore[arg-type]
