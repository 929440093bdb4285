"""What both programs share: the bundle's graphs, a frame's way in and out, and the job.

    python numpy_pan2024.py BUNDLE JOB.npz OUT.npz

JOB holds frames uint8 [T,h,w,3] and ``job``, JSON as bytes: expressions [[text, first frame], ...],
memory, anchors, box. OUT gets masks, mask_logits and scores of every frame, as "0/masks".
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer


def open_bundle(folder):
    manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    files = {name: Path(folder) / f"{name}.onnx" for name in manifest["graphs"]}
    providers = ["CPUExecutionProvider"]
    sessions = {n: onnxruntime.InferenceSession(f, providers=providers) for n, f in files.items()}

    def run(graph, **inputs):
        outputs = [output.name for output in sessions[graph].get_outputs()]
        return dict(zip(outputs, sessions[graph].run(outputs, inputs), strict=True))

    return manifest, Tokenizer.from_file(str(Path(folder) / "tokenizer.json")), run


def scaled(display, box):
    box = sorted(box, reverse=display[0] > display[1])
    scale = min(box[0] / display[0], box[1] / display[1])
    return display[0] * scale, display[1] * scale


def network_input(frame, content, padded):
    if frame.shape[:2] != tuple(content):
        wide = Image.fromarray(frame).resize((content[1], len(frame)), Image.Resampling.BILINEAR)
        frame = np.asarray(wide.resize((content[1], content[0]), Image.Resampling.BILINEAR))
    padding = np.broadcast_to(np.uint8([122, 116, 104]), (1, *padded, 3)).copy()
    padding[0, : content[0], : content[1]] = frame
    return padding


def masks_of(logits, content, display):
    masks = []
    for one in logits:
        box, size = (0, 0, content[1] / 4, len(one)), (display[1], len(one))
        wide = Image.fromarray(one).resize(size, Image.Resampling.BILINEAR, box=box)
        box, size = (0, 0, display[1], content[0] / 4), (display[1], display[0])
        masks.append(np.asarray(wide.resize(size, Image.Resampling.BILINEAR, box=box)) > 0)
    return np.stack(masks)


def stacked_tokens(sentences):
    longest = max(map(len, sentences))
    tokens = [np.pad(one, ((0, longest - len(one)), (0, 0))) for one in sentences]
    return np.stack(tokens), np.array([np.arange(longest) >= len(one) for one in sentences])


def main(segment):
    bundle, job, out = sys.argv[1:]
    with np.load(job) as file:
        frames, settings = file["frames"], json.loads(file["job"].tobytes())
    arrays = {}
    for t, result in enumerate(segment(bundle, frames, **settings)):
        arrays |= {
            f"{t}/{n}": a for n, a in zip(("masks", "mask_logits", "scores"), result, strict=True)
        }
    np.savez(out, **arrays)
