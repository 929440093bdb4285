"""Test the losses against loops over clips, layers, frames and objects in float64."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import (
    FramePrediction,
    QueryDescriptors,
)
from rvos_deploy.networks.pan2024.modules.mask_head import MaskHead
from rvos_deploy.networks.pan2024.modules.network import (
    FrameOutput,
    NetworkOutput,
    VideoOutput,
    build_network,
)
from rvos_deploy.networks.pan2024.modules.video_query_decoder import VideoPrediction
from rvos_deploy.training.losses import LossConfig, LossWeights, training_losses
from rvos_deploy.training.matching import MatchingWeights
from rvos_deploy.training.points import PointSampling, draw_points, sample_points
from rvos_deploy.training.targets import ClipTargets

QUERIES, DIM = 5, 8
MAP, SIZE = (6, 8), (24, 32)
FRAME_LAYERS, VIDEO_LAYERS = 3, 2
POINTS = PointSampling(24)
# Sums of some hundreds of float64 terms, in another order than the batched ones.
EXACT = {"rel": 1e-9, "abs": 1e-9}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def number(value: Tensor) -> float:
    return float(value.detach())


def no_descriptors() -> QueryDescriptors:
    """Return empty descriptors, which the losses do not read."""
    return QueryDescriptors(*(torch.empty(0) for _ in QueryDescriptors._fields))


def random_output(batch: int, length: int) -> NetworkOutput:
    """Return float64 leaves with gradient."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).requires_grad_()

    frames = batch * length
    predictions = [
        FramePrediction(leaf(frames, QUERIES, 2), leaf(frames, QUERIES, DIM))
        for _ in range(FRAME_LAYERS)
    ]
    videos = [
        VideoPrediction(
            leaf(batch, QUERIES, DIM), leaf(batch, QUERIES, 2), leaf(batch, QUERIES, DIM)
        )
        for _ in range(VIDEO_LAYERS)
    ]
    features, queries = leaf(frames, DIM, *MAP), leaf(frames, QUERIES, DIM)
    unused = torch.empty(0)
    return NetworkOutput(
        FrameOutput(features, queries, predictions, unused, no_descriptors()),
        VideoOutput(unused, unused, videos, leaf(batch, length, QUERIES, DIM)),
    )


def random_targets(objects: list[int], length: int, referred: list[list[bool]]) -> ClipTargets:
    """Return random rectangles, one for each object and frame."""
    clips = []
    for count in objects:
        masks = torch.zeros(count, length, *SIZE, dtype=torch.bool)
        for k, t in itertools.product(range(count), range(length)):
            top, left = int(torch.randint(0, 14, ())), int(torch.randint(0, 20, ()))
            masks[k, t, top : top + 10, left : left + 12] = True
        clips.append(masks)
    return ClipTargets(
        tuple(clips), tuple(torch.tensor(flags, dtype=torch.bool) for flags in referred)
    )


def usual_targets(length: int = 3) -> ClipTargets:
    """Return three objects, two of them hidden in some frames, and two objects."""
    targets = random_targets([3, 2], length, [[True, False, True], [False, True]])
    if length > 1:
        targets.masks[0][0, length // 2] = False
        targets.masks[0][1, 0] = False
    return targets


def exact_head() -> MaskHead:
    """Return the network's head in float64; only its result is rounded to float32."""
    head = MaskHead(DIM).double()
    with torch.no_grad():
        head.projection.bias.normal_()
    return head


def in_float64(head: MaskHead) -> object:
    """Compute the same product without folding and without rounding."""

    def product(embeddings: Tensor, features: Tensor, of_frames: Tensor | None = None) -> Tensor:
        weight, bias = head.projection.weight, head.projection.bias
        projected = torch.einsum("oc,...chw->...ohw", weight, features) + bias[:, None, None]
        logits = torch.einsum("...nc,...chw->...nhw", embeddings, projected)
        if of_frames is None:
            return logits
        return logits + torch.einsum("...nc,...chw->...nhw", of_frames, features)

    return product


def losses_of(
    output: NetworkOutput, targets: ClipTargets, seed: int = 0, **config: object
) -> dict[str, Tensor]:
    torch.manual_seed(11)
    settings = {"points": POINTS, **config}
    return training_losses(
        output,
        targets,
        in_float64(exact_head()),  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(seed),
        config=LossConfig(**settings),  # type: ignore[arg-type]
    )


# --- the naive implementation: full masks, one pair at a time, all permutations --------------


def naive_pair(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cross-entropy and dice of one tube at its points."""
    probability = logits.sigmoid()
    cross_entropy = -(labels * probability.log() + (1 - labels) * (1 - probability).log()).mean()
    overlap = (probability * labels).sum()
    return cross_entropy, 1 - (2 * overlap + 1) / (probability.sum() + labels.sum() + 1)


def naive_match(cost: list[list[float]]) -> tuple[int, ...]:
    """Find the query of each target by all permutations; cost [targets][queries]."""
    return min(
        itertools.permutations(range(QUERIES), len(cost)),
        key=lambda queries: sum(cost[k][q] for k, q in enumerate(queries)),
    )


def naive_layer(
    class_logits: Tensor,
    masks: Tensor,
    tubes: list[Tensor],
    points: Tensor,
    sampling: PointSampling,
    weights: tuple[float, float, float],
) -> tuple[Tensor, Tensor, tuple[int, ...], tuple[int, ...]]:
    """Compute one layer of one clip.

    Arguments are class_logits [N,2], masks [N,T,h,w], each tube [T,H,W] and points [T,S].

    Returns the sums of cross-entropy and dice over the tubes, the query of each tube, and the
    queries whose dice with any tube is at least one half.
    """

    def sample(image: Tensor, where: Tensor) -> Tensor:
        return sample_points(image.double()[None, None], where[None])[0, 0]

    first = points[:, : sampling.num_points]
    times = range(points.shape[0])

    def at(tube: Tensor, where: list[Tensor] | Tensor) -> Tensor:
        return torch.cat([sample(tube[t], where[t]) for t in times])

    cost, covering = [], []
    for tube in tubes:
        row = []
        for q in range(QUERIES):
            pair = naive_pair(at(masks[q], first), at(tube, first))
            if number(pair[1]) <= 0.5:
                covering.append(q)
            terms = (-class_logits[q].softmax(0)[0], *pair)
            row.append(sum(w * number(x) for w, x in zip(weights, terms, strict=True)))
        cost.append(row)
    queries = naive_match(cost) if tubes else ()
    total = [masks.sum() * 0, masks.sum() * 0]
    for tube, q in zip(tubes, queries, strict=True):
        chosen = []
        for t in times:
            uncertainty = sample(masks[q, t], points[t])[: sampling.candidates].abs()
            nearest = uncertainty.argsort()[: sampling.uncertain]
            chosen.append(torch.cat((points[t][nearest], points[t][sampling.candidates :])))
        for i, value in enumerate(naive_pair(at(masks[q], chosen), at(tube, chosen))):
            total[i] = total[i] + value
    return total[0], total[1], queries, tuple(covering)


def naive_class(logits: list[Tensor], matched: list[tuple[int, ...]], no_object: float) -> Tensor:
    """Compute the weighted mean over the queries of all clips of one layer."""
    total, weight = 0.0, 0.0
    for clip, queries in zip(logits, matched, strict=True):
        for q in range(QUERIES):
            w = 1.0 if q in queries else no_object
            total = total - w * clip[q].log_softmax(0)[0 if q in queries else 1]
            weight += w
    return total / weight


def naive_losses(
    output: NetworkOutput, targets: ClipTargets, config: LossConfig, seed: int
) -> dict[str, Tensor]:
    torch.manual_seed(11)
    product = in_float64(exact_head())
    weights, length = config.weights, targets.length
    generator = torch.Generator().manual_seed(seed)
    points = draw_points(targets.batch * length, config.points, generator, torch.device("cpu"))
    points = points.double()
    features = output.frames.mask_features
    losses = {f"{part}_{kind}": 0.0 for part in ("frame", "video") for kind in ("mask", "dice")}
    counts = {"frame": 0, "video": 0}
    frame_objects, video_objects = [], []
    for b, t in itertools.product(range(targets.batch), range(length)):
        kept = [
            k
            for k in range(len(targets.masks[b]))
            if targets.masks[b][k, t].any()
            and (config.frame_objects == "all" or targets.referred[b][k])
        ]
        frame_objects.append(kept)
        counts["frame"] += len(kept)
    for b in range(targets.batch):
        kept = [k for k in range(len(targets.masks[b])) if targets.referred[b][k]]
        video_objects.append([k for k in kept if targets.masks[b][k].any()])
        counts["video"] += len(video_objects[-1])
    frame_class = video_class = 0.0
    for prediction in output.frames.predictions:
        matches = []
        for f, kept in enumerate(frame_objects):
            b, t = divmod(f, length)
            masks = torch.einsum("nc,chw->nhw", prediction.mask_embeddings[f], features[f])
            tubes = [targets.masks[b][k, t : t + 1] for k in kept]
            bce, dice, queries, _ = naive_layer(
                prediction.logits[f], masks[:, None], tubes, points[f : f + 1], config.points,
                (weights.frame_class, weights.mask, weights.dice),
            )  # fmt: skip
            losses["frame_mask"] += bce
            losses["frame_dice"] += dice
            matches.append(queries)
        frame_class += naive_class(list(prediction.logits), matches, weights.no_object)
    last_frame = matches
    for prediction in output.video.predictions:
        matches, right = [], []
        for b, kept in enumerate(video_objects):
            clip = slice(b * length, (b + 1) * length)
            of_frames = output.video.frame_mask_embeddings[b]
            masks = product(prediction.mask_embeddings[b], features[clip], of_frames)
            masks = masks.transpose(0, 1)
            bce, dice, queries, covering = naive_layer(
                prediction.logits[b], masks, [targets.masks[b][k] for k in kept], points[clip],
                config.points, (weights.video_class, weights.mask, weights.dice),
            )  # fmt: skip
            losses["video_mask"] += bce
            losses["video_dice"] += dice
            matches.append(queries)
            right.append((*queries, *covering) if config.accept_duplicates else queries)
        video_class += naive_class(list(prediction.logits), right, weights.no_object)
    pairs = []
    for b in range(targets.batch):
        tokens = []
        for f in range(b * length, (b + 1) * length):
            for k, q in zip(frame_objects[f], last_frame[f], strict=True):
                tokens.append((k, output.frames.queries[f, q]))
        for k, q in zip(video_objects[b], matches[b], strict=True):
            tokens.append((k, output.video.predictions[-1].queries[b, q]))
        for (k, x), (other, y) in itertools.permutations(tokens, 2):
            probability = (x @ y / math.sqrt(DIM)).sigmoid()
            pairs.append(-torch.log(probability if k == other else 1 - probability))
    named = {name: value / max(counts[name.split("_")[0]], 1) for name, value in losses.items()}
    named |= {"frame_class": frame_class, "video_class": video_class}
    named["similarity"] = torch.stack(pairs).mean() if pairs else torch.zeros(())
    return named


def weighted_sum(named: dict[str, Tensor], weights: LossWeights) -> Tensor:
    by_name = {
        "frame_class": weights.frame_class, "video_class": weights.video_class,
        "frame_mask": weights.mask, "video_mask": weights.mask,
        "frame_dice": weights.dice, "video_dice": weights.dice,
        "similarity": weights.similarity,
    }  # fmt: skip
    return sum(by_name[name] * named[name] for name in by_name)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("length", "config"),
    [
        (3, LossConfig(points=POINTS)),
        (1, LossConfig(points=POINTS)),
        (3, LossConfig(points=POINTS, frame_objects="referred")),
        (3, LossConfig(points=POINTS, accept_duplicates=True)),
        (2, LossConfig(LossWeights(1, 6, 3, 4, 2, 0.3), PointSampling(17, 2.0, 0.5))),
    ],
    ids=["clip", "one-frame", "referred", "duplicates", "other-weights"],
)
def test_batched_losses_and_gradients_equal_the_naive_ones(length: int, config: LossConfig) -> None:
    torch.manual_seed(length)
    output, targets = random_output(2, length), usual_targets(length)
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    losses = losses_of(output, targets, seed=5, **settings)
    expected = naive_losses(output, targets, config, seed=5)
    assert set(losses) == {*expected, "total"}
    for name, value in expected.items():
        assert number(losses[name]) == pytest.approx(number(value), **EXACT), name
    total = weighted_sum(expected, config.weights)
    assert number(losses["total"]) == pytest.approx(number(total), **EXACT)
    leaves = [
        output.frames.mask_features,
        output.frames.queries,
        *(x for p in output.frames.predictions for x in p),
        *(x for p in output.video.predictions for x in p[1:]),
        output.video.predictions[-1].queries,
    ]
    for gradient, naive in zip(
        torch.autograd.grad(losses["total"], leaves), torch.autograd.grad(total, leaves),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(gradient, naive, rtol=1e-8, atol=1e-10)
        assert gradient.abs().max() > 0


def test_sentences_of_a_clip_count_like_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The video losses equal those of the clip repeated for each sentence."""
    single = usual_targets()
    flags = (single.referred[0], ~single.referred[0], single.referred[1], torch.zeros(2).bool())
    together = ClipTargets(single.masks, flags)
    apart = ClipTargets(tuple(m for m in single.masks for _ in range(2)), flags)
    clips, sentences = random_output(2, 3), random_output(4, 3)
    output = NetworkOutput(clips.frames, sentences.video)
    features = clips.frames.mask_features.unflatten(0, (2, 3)).repeat_interleave(2, 0).flatten(0, 1)
    repeated = NetworkOutput(
        sentences.frames._replace(mask_features=features),
        sentences.video,
    )
    drawn = draw_points(6, POINTS, torch.Generator().manual_seed(1), torch.device("cpu"))

    def same_points(frames: int, *_: object) -> Tensor:
        times = frames // 6
        return drawn.unflatten(0, (2, 3)).repeat_interleave(times, 0).flatten(0, 1)

    monkeypatch.setattr("rvos_deploy.training.points.draw_points", same_points)
    found, expected = losses_of(output, together), losses_of(repeated, apart)
    for name in ("video_class", "video_mask", "video_dice"):
        assert number(found[name]) == pytest.approx(number(expected[name]), **EXACT), name
    own = NetworkOutput(
        clips.frames,
        VideoOutput(
            *sentences.video[:2],
            [VideoPrediction(*(x[::2] for x in p)) for p in sentences.video.predictions],
            sentences.video.frame_mask_embeddings[::2],
        ),
    )
    alone = losses_of(own, single)
    for name in ("frame_class", "frame_mask", "frame_dice", "similarity"):
        assert number(found[name]) == pytest.approx(number(alone[name]), **EXACT), name


def test_a_separate_weight_of_the_class_in_the_matching() -> None:
    """A query with a high score on nothing competes with a fitting one with a low score."""
    weights = LossWeights(video_class=20.0)
    assert weights.matching(20.0) == MatchingWeights(20.0, 5.0, 5.0)
    apart = dataclasses.replace(weights, match_class=2.0)
    assert apart.matching(20.0) == MatchingWeights(2.0, 5.0, 5.0)
    output, targets = random_output(2, 3), usual_targets()
    heavy, light = (losses_of(output, targets, weights=w) for w in (weights, apart))
    assert light["video_class"] > heavy["video_class"]
    assert light["video_mask"] + light["video_dice"] < heavy["video_mask"] + heavy["video_dice"]


def test_the_networks_mask_head_gives_the_same_losses() -> None:
    """The folded head gives float32 logits near 10, which err by 2^-24, hence 1e-5."""
    torch.manual_seed(0)
    output, targets = random_output(2, 3), usual_targets()
    unfolded = losses_of(output, targets)
    torch.manual_seed(11)
    head = exact_head()
    losses = training_losses(
        output,
        targets,
        head,
        generator=torch.Generator().manual_seed(0),
        config=LossConfig(points=POINTS),
    )
    for name, value in losses.items():
        assert number(value) == pytest.approx(number(unfolded[name]), rel=1e-5), name
    losses["total"].backward()
    assert head.projection.weight.grad is not None
    assert head.projection.weight.grad.abs().max() > 0
    assert head.projection.bias.grad is not None
    assert head.projection.bias.grad.abs().max() > 0


def test_sampled_losses_converge_to_dense_ones() -> None:
    """Uniform points (importance 0) estimate the mean over the image on a finer grid.

    With 20,000 points a frame, cross-entropies of standard deviation 1.5 err by 0.011 a tube;
    fewer points err more.
    """
    torch.manual_seed(4)
    output, targets = random_output(1, 1), random_targets([2], 1, [[True, True]])
    fine = tuple(8 * side for side in SIZE)
    options = {"size": fine, "mode": "bilinear", "align_corners": False}
    labels = F.interpolate(targets.masks[0].transpose(0, 1).double(), **options)[0].flatten(1)
    features = F.interpolate(output.frames.mask_features, **options)[0].flatten(1)
    expected = 0.0
    for prediction in output.frames.predictions:
        logits = prediction.mask_embeddings[0] @ features
        probability = prediction.logits[0].softmax(-1)[:, 0]
        pairs = [[naive_pair(logits[q], labels[k]) for q in range(QUERIES)] for k in range(2)]
        cost = [
            [number(5 * bce + 5 * dice - 2 * probability[q]) for q, (bce, dice) in enumerate(row)]
            for row in pairs
        ]
        expected += sum(number(pairs[k][q][0]) / 2 for k, q in enumerate(naive_match(cost)))

    def error(num_points: int) -> float:
        sampling = PointSampling(num_points, oversample=1, importance=0)
        values = [
            number(losses_of(output, targets, seed, points=sampling)["frame_mask"])
            for seed in range(4)
        ]
        return max(abs(value - expected) for value in values)

    many = error(20000)
    assert many < 0.03 * expected
    # Fifty times the points: a seventh of the error; half is asked for.
    assert many < 0.5 * error(400)


def test_every_layer_and_every_input_gets_a_gradient() -> None:
    output = random_output(2, 3)
    losses_of(output, usual_targets())["total"].backward()
    leaves = [output.frames.mask_features, output.frames.queries]
    leaves += [x for p in output.frames.predictions for x in p]
    leaves += [x for p in output.video.predictions for x in (p.logits, p.mask_embeddings)]
    leaves.append(output.video.predictions[-1].queries)
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().max() > 0


def test_the_same_generator_gives_the_same_losses_to_the_last_bit() -> None:
    output, targets = random_output(2, 3), usual_targets()
    first, again = losses_of(output, targets, 1), losses_of(output, targets, 1)
    other = losses_of(output, targets, 2)
    for name in first:
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["frame_mask"], other["frame_mask"])


def test_the_generator_advances_independently_of_the_targets() -> None:
    """So a run can be resumed, or compared with one on other expressions."""
    states = []
    for targets in (usual_targets(), random_targets([1, 0], 3, [[False], []])):
        generator = torch.Generator().manual_seed(0)
        training_losses(
            random_output(2, 3),
            targets,
            in_float64(exact_head()),  # type: ignore[arg-type]
            generator=generator,
            config=LossConfig(points=POINTS),
        )
        states.append(generator.get_state())
    assert torch.equal(*states)


# --- awkward clips ---------------------------------------------------------------------------


def no_object_loss(logits: list[Tensor]) -> float:
    return sum(number(-x.log_softmax(-1)[..., 1].mean()) for x in logits)


@pytest.mark.parametrize("objects", [0, 2])
def test_clips_without_targets_have_class_losses_and_reach_every_leaf(objects: int) -> None:
    """There is no object, or no visible one. Gradients are zero but present, as processes need."""
    output = random_output(2, 3)
    targets = random_targets([objects, objects], 3, [[True] * objects] * 2)
    for masks in targets.masks:
        masks.zero_()
    losses = losses_of(output, targets)
    for name in ("frame_mask", "frame_dice", "video_mask", "video_dice", "similarity"):
        assert number(losses[name]) == 0.0, name
    frame, video = output.frames.predictions, output.video.predictions
    assert number(losses["frame_class"]) == pytest.approx(no_object_loss([p.logits for p in frame]))
    assert number(losses["video_class"]) == pytest.approx(no_object_loss([p.logits for p in video]))
    losses["total"].backward()
    leaves = [output.frames.mask_features, output.frames.queries, video[-1].queries]
    leaves += [p.mask_embeddings for p in (*frame, *video)]
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def test_a_no_target_expression_has_only_the_class_loss_of_the_video() -> None:
    output = random_output(2, 3)
    targets = random_targets([3, 2], 3, [[False] * 3, [False] * 2])
    losses = losses_of(output, targets)
    assert number(losses["video_mask"]) == number(losses["video_dice"]) == 0.0
    logits = [p.logits for p in output.video.predictions]
    assert number(losses["video_class"]) == pytest.approx(no_object_loss(logits))
    # The frame queries still find the objects, unless told to find only those that are meant.
    assert number(losses["frame_mask"]) > 0
    referred = losses_of(output, targets, frame_objects="referred")
    assert number(referred["frame_mask"]) == number(referred["similarity"]) == 0.0


def test_an_object_that_is_never_visible_is_no_target() -> None:
    output = random_output(1, 3)
    targets = random_targets([2], 3, [[True, True]])
    targets.masks[0][1] = False
    alone = ClipTargets((targets.masks[0][:1],), (targets.referred[0][:1],))
    with_it, without = losses_of(output, targets), losses_of(output, alone)
    for name, value in with_it.items():
        assert number(value) == pytest.approx(number(without[name]), **EXACT), name


def test_more_objects_than_queries() -> None:
    objects = QUERIES + 1
    output, targets = random_output(1, 2), random_targets([objects], 2, [[True] * objects])
    with pytest.raises(InputError, match="6 objects to find with 5 queries"):
        losses_of(output, targets)


def test_targets_of_other_clips() -> None:
    with pytest.raises(InputError, match=r"2 clips of 2 frames do not fit .* of 6 frames"):
        losses_of(random_output(2, 3), usual_targets(2))


def test_an_unknown_kind_of_frame_objects() -> None:
    with pytest.raises(InputError, match="'some'; known: all, referred"):
        LossConfig(frame_objects="some")  # type: ignore[arg-type]


def perfect_clip(masks: Tensor) -> NetworkOutput:
    """Return features that hold the masks [K,T,H,W], and queries that each read one mask."""
    objects, length = masks.shape[:2]
    features = torch.zeros(length, DIM, *SIZE, dtype=torch.float64)
    features[:, :objects] = torch.where(masks.transpose(0, 1), 1.0, -1.0).double()
    features[:, objects:] = -1.0
    embeddings = 60.0 * torch.eye(DIM, dtype=torch.float64)[:QUERIES]
    found = torch.zeros(length, QUERIES, dtype=torch.bool)
    found[:, :objects] = masks.flatten(2).any(-1).T
    logits = 30.0 * torch.stack((found, ~found), dim=-1).double()
    meant = 30.0 * torch.stack((found.any(0), ~found.any(0)), dim=-1).double()
    tokens = 10.0 * (2 * torch.eye(DIM, dtype=torch.float64)[:QUERIES] - 0.25)
    frame = FramePrediction(logits, embeddings.expand(length, -1, -1))
    video = VideoPrediction(tokens[None], meant[None], embeddings[None])
    return NetworkOutput(
        FrameOutput(
            features, tokens.expand(length, -1, -1), [frame], torch.empty(0), no_descriptors()
        ),
        VideoOutput(torch.empty(0), torch.empty(0), [video]),
    )


def plain_product(embeddings: Tensor, features: Tensor, of_frames: Tensor | None = None) -> Tensor:
    embeddings = embeddings if of_frames is None else embeddings + of_frames
    return (embeddings @ features.flatten(-2)).unflatten(-1, features.shape[-2:])


def perfect_losses(
    output: NetworkOutput, targets: ClipTargets, importance: float = 0.0
) -> dict[str, float]:
    """Compute losses at uniform points; uncertain points would all lie on outlines."""
    config = LossConfig(points=PointSampling(200, importance=importance))
    generator = torch.Generator().manual_seed(0)
    losses = training_losses(output, targets, plain_product, generator=generator, config=config)
    return {name: number(value) for name, value in losses.items()}


def test_a_duplicate_on_a_referred_object_may_be_accepted() -> None:
    """Two equal queries have high scores on one object.

    That is correct only where duplicates are accepted.
    """
    targets = random_targets([2], 3, [[True, True]])
    output = perfect_clip(targets.masks[0])
    (video,) = output.video.predictions
    for part in (video.mask_embeddings, video.logits):
        part[0, 2] = part[0, 0]
    refused, accepted = (
        training_losses(
            output,
            targets,
            plain_product,
            generator=torch.Generator().manual_seed(0),
            config=LossConfig(points=PointSampling(200), accept_duplicates=accept),
        )
        for accept in (False, True)
    )
    assert number(refused["video_class"]) > 0.1
    assert number(accepted["video_class"]) < 1e-6
    assert number(accepted["video_mask"]) == number(refused["video_mask"])


def test_a_tube_that_is_hidden_in_the_middle() -> None:
    """Perfect masks cost almost nothing; a mask of the hidden object costs more."""
    targets = random_targets([2], 3, [[True, True]])
    targets.masks[0][0, 1] = False
    output = perfect_clip(targets.masks[0])
    losses = perfect_losses(output, targets)
    # What is left comes from points within half a pixel of an outline, where labels are between 0
    # and 1 and logits steep: a sixth of the area of objects of 10 x 12 pixels.
    assert losses["video_mask"] < 0.3
    assert losses["video_dice"] < 0.06
    assert losses["frame_class"] < 1e-9
    assert losses["video_class"] < 1e-9
    assert losses["similarity"] < 1e-3
    # Objects' features fire in the hidden frame: no frame target there, but a part of the tube.
    output.frames.mask_features[1, 0] = output.frames.mask_features[0, 0]
    worse = perfect_losses(output, targets)
    assert worse["frame_mask"] == losses["frame_mask"]
    assert worse["video_mask"] > losses["video_mask"] + 1
    assert worse["video_dice"] > losses["video_dice"] + 0.1


def test_uncertain_points_lie_on_the_outline() -> None:
    targets = random_targets([1], 2, [[True]])
    output = perfect_clip(targets.masks[0])
    uniform = perfect_losses(output, targets)
    assert perfect_losses(output, targets, importance=1.0)["video_mask"] > 2 * uniform["video_mask"]


# --- normalisation, types, and the network ---------------------------------------------------


def test_masks_are_normalised_by_the_mean_count_of_all_processes() -> None:
    output, targets, counts = random_output(2, 3), usual_targets(), []

    def twice(count: Tensor) -> Tensor:
        counts.append(int(count))
        return 2 * count

    torch.manual_seed(11)
    losses = training_losses(
        output,
        targets,
        in_float64(exact_head()),  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(0),
        config=LossConfig(points=POINTS),
        mean_over_processes=twice,
    )
    # Nine objects in three frames less the two that are hidden, six in the other clip; 3 referred.
    assert counts == [13, 3]
    alone = losses_of(output, targets)
    for name, value in losses.items():
        if name.endswith(("mask", "dice")):
            assert number(value) == pytest.approx(number(alone[name]) / 2, **EXACT)
        elif name != "total":
            assert number(value) == pytest.approx(number(alone[name]), **EXACT)


def narrow(output: NetworkOutput, dtype: torch.dtype) -> NetworkOutput:
    def cast(x: Tensor) -> Tensor:
        return x.detach().to(dtype)

    frames, video = output
    return NetworkOutput(
        FrameOutput(
            cast(frames.mask_features),
            cast(frames.queries),
            [FramePrediction(*map(cast, p)) for p in frames.predictions],
            cast(frames.mask_embeddings),
            frames.descriptors,
        ),
        VideoOutput(
            *video[:2],
            [VideoPrediction(*map(cast, p)) for p in video.predictions],
            cast(video.frame_mask_embeddings),
        ),
    )


def test_under_autocast_only_the_mask_products_are_narrow() -> None:
    """bfloat16 has 8 bits: logits near 10 err by 0.04, and their mean over tubes by far less."""
    torch.manual_seed(2)
    output, targets = random_output(2, 3), usual_targets()
    head = MaskHead(DIM)
    values = {}
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            values[dtype] = training_losses(
                narrow(narrow(output, torch.bfloat16), dtype),
                targets,
                head,
                generator=torch.Generator().manual_seed(0),
                config=LossConfig(points=POINTS),
            )
    for name, value in values[torch.bfloat16].items():
        assert value.dtype == torch.float32
        wide = number(values[torch.float32][name])
        assert number(value) == pytest.approx(wide, rel=0.01), name


def test_the_losses_of_the_network_reach_all_trained_parameters() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(preset("tiny"), frame_decoder_layers=2, video_decoder_layers=2)
    network = build_network(config)
    frames = torch.randint(0, 256, (2, 2, 64, 64, 3), dtype=torch.uint8)
    token_ids = torch.zeros(2, 6, dtype=torch.int64)
    token_ids[:, :4] = torch.tensor([49406, 320, 518, 49407])
    masks = torch.zeros(2, 2, 64, 64, dtype=torch.bool)
    masks[0, :, 5:30, 8:40] = True
    masks[1, :, 30:60, 20:50] = True
    targets = ClipTargets((masks, masks[:1]), (torch.tensor([True, False]), torch.tensor([False])))
    losses = training_losses(
        network(frames, token_ids),
        targets,
        network.mask_head,
        generator=torch.Generator().manual_seed(0),
        config=LossConfig(points=PointSampling(64)),
    )
    assert all(value.isfinite() for value in losses.values())
    losses["total"].backward()
    without = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert not without
    assert all(p.grad is None for p in network.clip.parameters())
