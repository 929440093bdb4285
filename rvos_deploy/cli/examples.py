"""State the examples that the help of each command ends with."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("rvos-deploy demo --out demo",),
    "run": (
        'rvos-deploy run street.mp4 "the man in red" "the dog" --bundle mine',
        'rvos-deploy run street.mp4 "the dog" --start 10s --end 20s --save overlay,rle',
        'rvos-deploy run rtsp://camera/1 "a person" --policy latest --save rle=-',
    ),
    "batch": (
        "rvos-deploy batch videos/*.mp4 --expressions sentences.csv --out results",
        "rvos-deploy batch a.mp4 --expressions s.json --out r --address head:6379",
    ),
    "serve": (
        "rvos-deploy serve mine --max-streams 8",
        "RVOS_SERVE_TOKEN=... rvos-deploy serve mine --host 0.0.0.0 --replicas 2",
    ),
    "ui": ("rvos-deploy ui", "rvos-deploy ui mine --port 8080 --no-browser"),
    "export": (
        "rvos-deploy export my-run --out mine",
        "rvos-deploy export onlinerefer-r50 --out onlinerefer",
        "rvos-deploy export my-run --precision int8 --calibration a.mp4 --out b",
    ),
    "export-triton": (
        "rvos-deploy export-triton mine --out models",
        "rvos-deploy export-triton mine --out models --graphs plans --device gpu",
    ),
    "build-engine": (
        "rvos-deploy build-engine mine",
        "rvos-deploy build-engine mine --target tensorrt-rtx",
    ),
    "verify": ("rvos-deploy verify mine --backend openvino",),
    "inspect": ("rvos-deploy inspect mine --parity",),
    "evaluate": ("rvos-deploy evaluate mine --data MeViS/valid_u",),
    "set-threshold": ("rvos-deploy set-threshold mine --online 0.5 --offline 0.6",),
    "benchmark": ("rvos-deploy benchmark --bundle mine --expressions 8",),
    "choose-backend": ("rvos-deploy choose-backend mine --size 256x448",),
    "doctor": ("rvos-deploy doctor --bundle mine",),
    "make-data": (
        "rvos-deploy make-data sample --out sample.mp4",
        "rvos-deploy make-data sprites --split valid --seed 1 --out data",
    ),
    "pretrain-clip": ("rvos-deploy pretrain-clip --out clip",),
    "train": (
        "rvos-deploy train tiny --data clips/train --valid clips/valid --out run",
        "torchrun --nproc-per-node 4 -m rvos_deploy train recipe.toml --out my-run",
    ),
}
"""By command, what people type most."""


def epilog(command: str) -> str:
    """Return the last lines of a command's help."""
    # Typer joins the lines of a paragraph, so each example is one.
    return "\n\n".join(("Examples:", *EXAMPLES[command]))
