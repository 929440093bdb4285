"""The loop of docs/graphs.md for the family online_refer, written from that page alone.

numpy_frames.py says how to call it."""

import math

import numpy as np
from numpy_frames import main, masks_of, network_input, open_bundle, scaled, stacked_tokens


def encode(text, tokenizer, run, longest):
    """Return the tokens [L,C] of a sentence."""
    text = " ".join(text.lower().split())
    ids = tokenizer.encode(text, add_special_tokens=False).ids[: longest - 2]
    ids = np.array([[0, *ids, 2]])
    return run("text_encoder", token_ids=ids, text_padding=np.zeros(ids.shape, bool))[
        "text_tokens"
    ][0]


def segment(bundle, frames, expressions, memory=None, anchors=None, box=None):
    """Yield masks, mask logits and scores of every frame."""
    manifest, tokenizer, run = open_bundle(bundle)
    model, display = manifest["model"], frames.shape[1:3]
    sides = scaled(display, box or (model["short_side"], 2**40))
    content = [max(32, math.floor(side / 32 + 0.5) * 32) for side in sides]
    sentences = []
    widths = {"content": model["dim"], "position": model["dim"], "box": 4}
    tracks = {name: np.zeros((0, width)) for name, width in widths.items()}
    for t, frame in enumerate(frames):
        features = run("backbone", frame=network_input(frame, content, content))
        texts = [text for text, first in expressions if first == t]
        sentences += [encode(text, tokenizer, run, model["max_tokens"]) for text in texts]
        joined = np.arange(len(sentences)) >= len(sentences) - len(texts)
        tracks = {name: np.pad(x, ((0, len(texts)), (0, 0))) for name, x in tracks.items()}
        tokens, padding = stacked_tokens(sentences)
        decoded = run(
            "frame_decoder",
            **features,
            text_tokens=tokens,
            text_padding=padding,
            **{f"track_{name}": x.astype(np.float32) for name, x in tracks.items()},
            joined=joined,
            preference=np.zeros((len(sentences), model["num_queries"]), np.float32),
        )
        tracks = {name: decoded[f"next_{name}"] for name in widths}
        logits = decoded["mask_logits"]
        yield (
            masks_of(logits, content, display),
            logits,
            decoded["scores"].max(axis=1, keepdims=True),
        )


if __name__ == "__main__":
    main(segment)
