"""OnlineRefer's forward written plainly in float64, expression by expression, frame by frame.

It shares nothing with the package: no batch of expressions, so no padding; attention head by head;
deformable attention level by level through ``grid_sample``. Weights come by their published names,
and the numbers of layers, levels, queries and points from names and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Constants:
    """What no shape says; the defaults are the published layout's."""

    heads: int = 8
    text_heads: int = 12
    input_groups: int = 32
    pixel_groups: int = 8
    mask_channels: int = 8


@dataclass(frozen=True)
class Answer:
    """Of one expression in one frame, Q queries: float64.

    Args:
        logits: [Q].
        boxes: [Q,4], (cx, cy, w, h), 0 to 1.
        masks: [Q,H/4,W/4], logits.
        outputs: [Q,C], of the last decoder layer.
        track: [1,C], the query's content in the next frame.
        memory: [sum of H_l W_l,C], the encoder's.
        mask_features: [C,H/4,W/4].
        best: index of the best query.
    """

    logits: NDArray[np.float64]
    boxes: NDArray[np.float64]
    masks: NDArray[np.float64]
    outputs: NDArray[np.float64]
    track: NDArray[np.float64]
    memory: NDArray[np.float64]
    mask_features: NDArray[np.float64]
    best: int


@dataclass(frozen=True)
class Track:
    """What one frame leaves for the next: [Q,C], [Q,C], and points [Q,2] or boxes [Q,4]."""

    content: Tensor
    position: Tensor
    reference: Tensor


class Reference:
    """The network with its weights."""

    def __init__(
        self, weights: Mapping[str, NDArray[np.floating]], constants: Constants | None = None
    ) -> None:
        self.w = {
            name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in weights.items()
        }
        self.constants = constants or Constants()

    @torch.inference_mode()
    def run(
        self,
        frames: NDArray[np.uint8],
        sentences: Sequence[NDArray[np.int64]],
        joins: Sequence[int],
    ) -> list[dict[int, Answer]]:
        """For every expression, its answers by frame.

        Args:
            frames: [T,H,W,3], sides multiples of 32.
            sentences: token ids of every expression, unpadded.
            joins: the frame at which each expression starts.
        """
        texts = [self.text(ids) for ids in sentences]
        tracks: list[Track | None] = [None] * len(sentences)
        answers: list[dict[int, Answer]] = [{} for _ in sentences]
        for t, frame in enumerate(frames):
            features = self.backbone(frame)
            for e, text in enumerate(texts):
                if t >= joins[e]:
                    track = tracks[e] or self.start()
                    answers[e][t], tracks[e] = self.frame(features, text, track)
        return answers

    # Layers

    def count(self, prefix: str) -> int:
        """How many numbered layers follow the prefix."""
        rest = (name[len(prefix) :] for name in self.w if name.startswith(prefix))
        return 1 + max(int(name.split(".")[0]) for name in rest)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def layer_norm(self, name: str, x: Tensor, epsilon: float = 1e-5) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return centred / scale * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def group_norm(self, name: str, x: Tensor, groups: int) -> Tensor:
        """Of a map [C,H,W]."""
        grouped = x.reshape(groups, -1)
        centred = grouped - grouped.mean(1, keepdim=True)
        scale = (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        normal = (centred / scale).reshape(x.shape)
        return (
            normal * self.w[f"{name}.weight"][:, None, None] + self.w[f"{name}.bias"][:, None, None]
        )

    def convolution(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        """Of a map [C,H,W]; the padding keeps the size at stride 1."""
        weight, bias = self.w[f"{name}.weight"], self.w.get(f"{name}.bias")
        return F.conv2d(x[None], weight, bias, stride, weight.shape[-1] // 2)[0]

    def mlp(self, name: str, x: Tensor) -> Tensor:
        last = self.count(f"{name}.layers.") - 1
        for layer in range(last):
            x = self.linear(f"{name}.layers.{layer}", x).relu()
        return self.linear(f"{name}.layers.{last}", x)

    def attention(self, name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``nn.MultiheadAttention``: query [N,C], key and value [M,C]."""
        weights = self.w[f"{name}.in_proj_weight"].chunk(3)
        biases = self.w[f"{name}.in_proj_bias"].chunk(3)
        projected = [
            x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True)
        ]
        return self.linear(f"{name}.out_proj", by_heads(*projected, self.constants.heads))

    def feed_forward(self, name: str, x: Tensor, norm: str) -> Tensor:
        inner = self.linear(f"{name}.linear1", x).relu()
        return self.layer_norm(f"{name}.{norm}", x + self.linear(f"{name}.linear2", inner))

    # Backbone

    def backbone(self, frame: NDArray[np.uint8]) -> list[Tensor]:
        """Four maps [C,H/s,W/s], strides 4 to 32."""
        x = torch.from_numpy(frame.astype(np.float64)) / 255
        x = ((x - torch.tensor(MEAN).double()) / torch.tensor(STD).double()).permute(2, 0, 1)
        body = "backbone.0.body"
        x = self.frozen_norm(f"{body}.bn1", self.convolution(f"{body}.conv1", x, 2)).relu()
        x = F.max_pool2d(x[None], 3, 2, 1)[0]
        maps = []
        for stage in range(1, 5):
            for block in range(self.count(f"{body}.layer{stage}.")):
                stride = 2 if stage > 1 and block == 0 else 1
                x = self.bottleneck(f"{body}.layer{stage}.{block}", x, stride)
            maps.append(x)
        return maps

    def bottleneck(self, name: str, x: Tensor, stride: int) -> Tensor:
        y = self.frozen_norm(f"{name}.bn1", self.convolution(f"{name}.conv1", x)).relu()
        y = self.frozen_norm(f"{name}.bn2", self.convolution(f"{name}.conv2", y, stride)).relu()
        y = self.frozen_norm(f"{name}.bn3", self.convolution(f"{name}.conv3", y))
        if f"{name}.downsample.0.weight" in self.w:
            x = self.convolution(f"{name}.downsample.0", x, stride)
            x = self.frozen_norm(f"{name}.downsample.1", x)
        return (x + y).relu()

    def frozen_norm(self, name: str, x: Tensor) -> Tensor:
        mean, variance, weight, bias = (
            self.w[f"{name}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    # Text

    @torch.inference_mode()
    def text(self, ids: NDArray[np.int64]) -> Tensor:
        """The tokens of a sentence: [L,C]."""
        name = "text_encoder.embeddings"
        x = self.w[f"{name}.word_embeddings.weight"][torch.from_numpy(ids)]
        x = x + self.w[f"{name}.position_embeddings.weight"][2 : 2 + len(ids)]
        x = x + self.w[f"{name}.token_type_embeddings.weight"][0]
        x = self.layer_norm(f"{name}.LayerNorm", x)
        for layer in range(self.count("text_encoder.encoder.layer.")):
            x = self.text_layer(f"text_encoder.encoder.layer.{layer}", x)
        return self.layer_norm("resizer.layer_norm", self.linear("resizer.fc", x), 1e-12)

    def text_layer(self, name: str, x: Tensor) -> Tensor:
        parts = [
            self.linear(f"{name}.attention.self.{part}", x) for part in ("query", "key", "value")
        ]
        mixed = by_heads(parts[0], parts[1], parts[2], self.constants.text_heads)
        y = self.linear(f"{name}.attention.output.dense", mixed)
        x = self.layer_norm(f"{name}.attention.output.LayerNorm", x + y)
        inner = self.linear(f"{name}.intermediate.dense", x)
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        return self.layer_norm(
            f"{name}.output.LayerNorm", x + self.linear(f"{name}.output.dense", inner)
        )

    # One frame of one expression

    def start(self) -> Track:
        """Five queries."""
        position = self.w["query_embed.weight"]
        reference = self.linear("transformer.reference_points", position).sigmoid()
        return Track(torch.zeros_like(position), position, reference)

    def frame(self, features: Sequence[Tensor], text: Tensor, track: Track) -> tuple[Answer, Track]:
        key = text + line_position(len(text), text.shape[1])
        levels = self.fused_levels(features, text, key)
        memory = self.encode(levels)
        output, reference = self.decode(memory, track)
        last = self.count("transformer.decoder.layers.") - 1
        logits = self.linear(f"class_embed.{last}", output)[:, 0]
        best = int(logits.argmax())
        mask_features = self.pixel_decoder(features[0], memory, text, key)
        masks = torch.stack(
            [self.mask(mask_features, x, box) for x, box in zip(output, reference, strict=True)]
        )
        kept = output[best : best + 1]
        inner = self.linear("track_embed.linear1", kept).relu()
        content = self.layer_norm(
            "track_embed.norm", kept + self.linear("track_embed.linear2", inner)
        )
        box = reference[best : best + 1]
        following = Track(content, track.position[best : best + 1], inverse_sigmoid(box).sigmoid())
        arrays = (logits, reference, masks, output, content, torch.cat([*map(rows, memory)]))
        found = [x.numpy() for x in (*arrays, mask_features)]
        return Answer(*found, best), following

    def fused_levels(self, features: Sequence[Tensor], text: Tensor, key: Tensor) -> list[Tensor]:
        """Maps [C,H_l,W_l] of strides 8, 16, 32, 64, multiplied by what the text says."""
        levels = []
        for level in range(len(self.w["transformer.level_embed"])):
            source = features[min(level + 1, 3)]
            x = self.convolution(f"input_proj.{level}.0", source, 2 if level > 2 else 1)
            x = self.group_norm(f"input_proj.{level}.1", x, self.constants.input_groups)
            told = self.attention("fusion_module.multihead_attn", rows(x), key, text)
            levels.append(as_map(rows(x) * told, x))
        return levels

    def encode(self, levels: list[Tensor]) -> list[Tensor]:
        positions = [
            rows(grid_position(x)) + embedding
            for x, embedding in zip(levels, self.w["transformer.level_embed"], strict=True)
        ]
        centres = torch.cat([pixel_centres(x) for x in levels])
        position = torch.cat(positions)
        for layer in range(self.count("transformer.encoder.layers.")):
            name = f"transformer.encoder.layers.{layer}"
            x = torch.cat([*map(rows, levels)])
            told = self.deformable(f"{name}.self_attn", x + position, centres, levels)
            x = self.layer_norm(f"{name}.norm1", x + told)
            x = self.feed_forward(name, x, "norm2")
            parts = x.split([level[0].numel() for level in levels])
            levels = [as_map(part, level) for part, level in zip(parts, levels, strict=True)]
        return levels

    def decode(self, memory: list[Tensor], track: Track) -> tuple[Tensor, Tensor]:
        """Outputs [Q,C] and refined boxes [Q,4]."""
        x, position, reference = track.content, track.position, track.reference
        for layer in range(self.count("transformer.decoder.layers.")):
            name = f"transformer.decoder.layers.{layer}"
            told = self.attention(f"{name}.self_attn", x + position, x + position, x)
            x = self.layer_norm(f"{name}.norm2", x + told)
            told = self.deformable(f"{name}.cross_attn", x + position, reference, memory)
            x = self.layer_norm(f"{name}.norm1", x + told)
            x = self.feed_forward(name, x, "norm3")
            change = self.mlp(f"bbox_embed.{layer}", x)
            known = reference.shape[1]
            change[:, :known] += inverse_sigmoid(reference)
            reference = change.sigmoid()
        return x, reference

    def deformable(
        self, name: str, query: Tensor, reference: Tensor, levels: Sequence[Tensor]
    ) -> Tensor:
        """Deformable attention of queries [N,C] around points [N,2] or boxes [N,4]."""
        heads, count = self.constants.heads, len(levels)
        offsets = self.linear(f"{name}.sampling_offsets", query)
        offsets = offsets.reshape(len(query), heads, count, -1, 2)
        weights = self.linear(f"{name}.attention_weights", query).reshape(len(query), heads, -1)
        weights = weights.softmax(-1).reshape(offsets.shape[:-1])
        points = offsets.shape[3]
        mixed = torch.zeros(len(query), heads, query.shape[1] // heads, dtype=torch.float64)
        for level, values in enumerate(levels):
            projected = as_map(self.linear(f"{name}.value_proj", rows(values)), values)
            height, width = values.shape[1:]
            for head, value in enumerate(projected.chunk(heads)):
                shift = offsets[:, head, level]
                if reference.shape[1] == 2:
                    shift = shift / torch.tensor([width, height])
                else:
                    shift = shift / points * reference[:, None, 2:] * 0.5
                places = reference[:, None, :2] + shift
                found = F.grid_sample(value[None], places[None] * 2 - 1, align_corners=False)[0]
                mixed[:, head] += (found * weights[:, head, level]).sum(-1).T
        return self.linear(f"{name}.output_proj", mixed.flatten(1))

    def pixel_decoder(
        self, finest: Tensor, memory: Sequence[Tensor], text: Tensor, key: Tensor
    ) -> Tensor:
        """Mask features [C,H/4,W/4]."""
        y = None
        for number, source in zip((4, 3, 2, 1), (*memory[2::-1], finest), strict=True):
            groups = self.constants.pixel_groups
            x = self.convolution(f"pixel_decoder.adapter_{number}", source)
            x = self.group_norm(f"pixel_decoder.adapter_{number}.norm", x, groups)
            x = self.vision_text_block(
                f"pixel_decoder.cross_attn_{number}", x, text, key, 2 ** (4 - number)
            )
            if y is not None:
                x = x + F.interpolate(y[None], x.shape[1:], mode="nearest")[0]
            y = self.convolution(f"pixel_decoder.layer_{number}", x)
            y = self.group_norm(f"pixel_decoder.layer_{number}.norm", y, groups).relu()
        return self.convolution("pixel_decoder.mask_features", y)

    def vision_text_block(
        self, name: str, x: Tensor, text: Tensor, key: Tensor, ratio: int
    ) -> Tensor:
        position = grid_position(x)
        size = (x.shape[1] // ratio, x.shape[2] // ratio)
        small = F.interpolate(x[None], size, mode="nearest")[0]
        small_position = F.interpolate(position[None], size, mode="nearest")[0]
        query = rows(small + small_position)
        told = as_map(self.attention(f"{name}.self_attn", query, query, rows(small)), small)
        told = F.interpolate(told[None], x.shape[1:], mode="bilinear", align_corners=False)[0]
        y = self.layer_norm(f"{name}.norm1", rows(x + told))
        told = self.attention(f"{name}.multihead_attn", y + rows(position), key, text)
        y = self.layer_norm(f"{name}.norm2", y + told)
        return as_map(self.feed_forward(name, y, "norm3"), x)

    def mask(self, features: Tensor, output: Tensor, box: Tensor) -> Tensor:
        """Logits [H/4,W/4] of one query."""
        channels, height, width = features.shape
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        relative = torch.stack(
            [box[0] * width * 4 - (4 * x + 2), box[1] * height * 4 - (4 * y + 2)]
        )
        inner = self.constants.mask_channels
        sizes = [inner * (channels + 2), inner * inner, inner, inner, inner, 1]
        parts = self.mlp("controller", output).split(sizes)
        z = torch.cat([features, relative]).flatten(1)
        z = (parts[0].reshape(inner, -1) @ z + parts[3][:, None]).relu()
        z = (parts[1].reshape(inner, -1) @ z + parts[4][:, None]).relu()
        return (parts[2].reshape(1, -1) @ z + parts[5][:, None]).reshape(height, width)


def by_heads(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    mixed = []
    for q, k, v in zip(
        query.chunk(heads, 1), key.chunk(heads, 1), value.chunk(heads, 1), strict=True
    ):
        mixed.append((q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v)
    return torch.cat(mixed, 1)


def rows(x: Tensor) -> Tensor:
    """[C,H,W] to [HW,C]."""
    return x.flatten(1).T


def as_map(x: Tensor, like: Tensor) -> Tensor:
    """[HW,C] to [C,H,W]."""
    return x.T.reshape(-1, *like.shape[1:])


def inverse_sigmoid(x: Tensor) -> Tensor:
    return torch.log(x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5))


def pixel_centres(x: Tensor) -> Tensor:
    """(x, y) of every pixel of a map, 0 to 1: [HW,2]."""
    height, width = x.shape[1:]
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([(column + 0.5) / width, (row + 0.5) / height], -1).reshape(-1, 2).double()


def waves(places: Tensor, features: int) -> Tensor:
    """Interleaved sines and cosines of places in radians: [N,features]."""
    columns = []
    for feature in range(features):
        angle = places / 10000 ** (2 * (feature // 2) / features)
        columns.append(angle.cos() if feature % 2 else angle.sin())
    return torch.stack(columns, 1)


def grid_position(x: Tensor) -> Tensor:
    """Sine position of a map, y before x: [C,H,W]."""
    channels, height, width = x.shape
    half = channels // 2
    y = (torch.arange(1, height + 1).double() - 0.5) / (height + 1e-6) * 2 * math.pi
    z = (torch.arange(1, width + 1).double() - 0.5) / (width + 1e-6) * 2 * math.pi
    vertical = waves(y, half).T[:, :, None].expand(half, height, width)
    horizontal = waves(z, half).T[:, None].expand(half, height, width)
    return torch.cat([vertical, horizontal])


def line_position(length: int, features: int) -> Tensor:
    """Sine position of tokens: [L,C]."""
    places = torch.arange(1, length + 1).double() / (length + 1e-6) * 2 * math.pi
    return waves(places, features)
