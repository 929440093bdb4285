"""The loop of docs/graphs.md for the family pan2024, written from that page alone.

The answer is never empty (the fallback top1). numpy_frames.py says how to call it.
"""

import html

import numpy as np
from numpy_frames import main, masks_of, network_input, open_bundle, scaled, stacked_tokens
from scipy.optimize import linear_sum_assignment

TEXT = ("text_tokens", "sentence", "text_padding")


def unit(v, least=1e-12):
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), least)


class Expression:
    def __init__(self, text, tokenizer, run, window, anchors):
        text = " ".join(html.unescape(html.unescape(text)).lower().split())
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:75]
        ids = np.array([[49406, *ids, 49407]])
        encoded = run("text_encoder", token_ids=ids)
        self.tokens, self.sentence = encoded["text_tokens"][0], encoded["sentence"][0]
        self.window, self.anchors, self.stride = window, anchors, 1
        self.count, self.held, self.query, self.greatest = 0, {}, None, None

    def align(self, position, content, score):
        """Return the query in each slot."""
        n = len(score)
        centre, size, seen = position[:, :2], position[:, 4], position[:, 4] >= 0.035
        content = unit(content - content.mean(axis=1, keepdims=True))
        content = unit(content - content.mean(axis=0), 0.01)
        known = np.zeros(n, bool)
        if self.query is None:
            order, self.holds, self.unseen = np.arange(n), np.zeros(n, bool), np.zeros(n, int)
            self.centre, self.content, self.size = centre * 0, content * 0, np.ones(n)
        else:
            match = 2.5 * np.linalg.norm(self.centre[:, None] - centre, axis=-1)
            match += 1 - unit(self.content) @ content.T
            match += 0.5 * np.abs(np.log(np.maximum(size, 0.035) / self.size[:, None]))
            match[:, ~seen] = np.inf
            limit = (1.6 + 0.2 * np.minimum(self.unseen, 20))[:, None]
            doubt = np.where(match < limit, 0.4 * (1 - score), 0.4)
            cost = np.where(self.holds[:, None], 1.6 * np.minimum(match / limit, 1) + doubt, 0)
            cost += 0.03 * (np.arange(n) != self.query[:, None])
            order = linear_sum_assignment(cost)[1]
            known = match[np.arange(n), order] < limit[:, 0]
        self.query = order
        centre, size, seen, content, score = (
            x[order] for x in (centre, size, seen, content, score)
        )
        followed = self.holds & seen & known & (self.unseen == 0)
        found = self.holds & seen & known & (self.unseen > 0)
        begun = ~self.holds & seen & (score > 0.3)
        distance = np.linalg.norm(centre[:, None] - centre, axis=-1)
        same = distance < 1.5 * np.maximum(size[:, None], size)
        same &= content @ content.T > -0.01
        updated, falling = followed.copy(), np.argsort(-score, kind="stable")
        for group in (found, begun):
            for slot in falling[group[falling]]:
                updated[slot] = not (same[slot] & updated).any()
        again, new = updated & self.holds, updated & begun
        self.centre[updated] = centre[updated]
        self.content[new], self.size[new] = content[new], size[new]
        self.content[again] = 0.8 * self.content[again] + (1 - 0.8) * content[again]
        self.size[again] = 0.8 * self.size[again] + (1 - 0.8) * size[again]
        self.unseen = np.where(updated, 0, self.unseen + 1)
        self.holds |= new
        return order

    def average(self, values, logits):
        """Return the mean over all frames so far."""
        if self.greatest is None:
            self.greatest, self.total, self.weighted = logits, np.ones_like(logits), values
        else:
            new = np.maximum(self.greatest, logits)
            keep, weight = np.exp(self.greatest - new), np.exp(logits - new)
            self.total = self.total * keep + weight
            self.weighted = self.weighted * keep[:, None] + values * weight[:, None]
            self.greatest = new
        return (self.weighted / self.total[:, None]).astype(np.float32)

    def remember(self, queries):
        """Keep a frame; return memory, ages and empty."""
        left = self.count - self.window
        if left in self.held and (not self.anchors or left % self.stride):
            del self.held[left]
        elif left in self.held:
            while sum(i <= left for i in self.held) > self.anchors:
                self.stride *= 2
                self.held = {i: q for i, q in self.held.items() if i > left or i % self.stride == 0}
        self.held[self.count] = queries
        self.count += 1
        spare = self.window + self.anchors - len(self.held)
        ages = [self.count - 1 - i for i in self.held] + [0] * spare
        memory = np.stack([*self.held.values()] + [np.zeros_like(queries)] * spare)
        return memory, np.float32(ages), np.arange(len(ages)) >= len(self.held)


def segment(bundle, frames, expressions, memory=64, anchors=0, box=None):
    """Yield masks, mask logits and scores of every frame."""
    manifest, tokenizer, run = open_bundle(bundle)
    display = frames.shape[1:3]
    sides = scaled(display, box or manifest["model"]["input_size"])
    content = [max(1, round(side)) for side in sides]
    padded = [-(-side // 32) * 32 for side in content]
    threshold = manifest.get("thresholds", {}).get("online", manifest["model"]["threshold"])
    present = []
    for t, frame in enumerate(frames):
        joined = [text for text, first in expressions if first == t]
        present += [Expression(text, tokenizer, run, memory, anchors) for text in joined]
        tokens, padding = stacked_tokens([e.tokens for e in present])
        text = dict(
            zip(TEXT, (tokens, np.stack([e.sentence for e in present]), padding), strict=True)
        )
        features = run("backbone", frame=network_input(frame, content, padded))
        decoded = run("frame_decoder", **features, **text)
        wide = {name: decoded[name].astype(float) for name in decoded if name.startswith("slot_")}
        orders, queries, memories = [], [], []
        for e, one in enumerate(present):
            cues = (wide[name][e] for name in ("slot_position", "slot_content", "slot_score"))
            orders.append(order := one.align(*cues))
            queries.append(
                one.average(wide["slot_values"][e][order], wide["slot_logits"][e][order])
            )
            memories.append(one.remember(decoded["frame_queries"][e][order]))
        names = ("memory", "memory_ages", "memory_empty")
        stacked = dict(zip(names, map(np.stack, zip(*memories, strict=True)), strict=True))
        video = run("video_decoder", **stacked, video_queries=np.stack(queries), **text)
        embeddings = decoded["frame_mask_embeddings"]
        below = np.nextafter(video["scores"].max(axis=1), np.float32(-1))
        logits = run(
            "mask_head",
            **video,
            threshold=np.minimum(np.float32(threshold), below),
            frame_mask_embeddings=np.stack([e[o] for e, o in zip(embeddings, orders, strict=True)]),
            mask_features=decoded["mask_features"],
        )["mask_logits"]
        yield masks_of(logits, content, display), logits, video["scores"]


if __name__ == "__main__":
    main(segment)
