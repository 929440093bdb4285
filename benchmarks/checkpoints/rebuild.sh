#!/usr/bin/env bash
# Rebuild the packaged network from tiny_frames.safetensors: rebuild.sh WORK. It takes about two and a
# half hours on two cores, and 26 GB in WORK. These are the commands of several training runs in order; they
# were never run in one go.
set -euo pipefail
cd "$(dirname "$0")"
work=$1
clip=tiny_clip.safetensors

training_run() { # RECIPE START
    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 --no-python rvos-deploy train "$1.toml" \
        --out "$work/$1" --clip-weights "$clip" --init-from "$2"
}

last() { # RUN
    find "$work/$1/checkpoints" -name weights.safetensors | sort | tail -1
}

# Initialise the comparison with the best query again, as before the second and the third training run.
fresh_competition() { # FROM TO
    python - "$1" "$2" <<'PYTHON'
import sys

import torch
from safetensors.torch import load_file, save_file

weights = load_file(sys.argv[1])
name = "video_decoder.referred_head.rivals.alone"
save_file({**weights, f"{name}.weight": torch.zeros(1, 128), f"{name}.bias": torch.full((1,), -2.0)}, sys.argv[2])
PYTHON
}

training_run video tiny_frames.safetensors
fresh_competition "$(last video)" "$work/second.safetensors"
training_run video_2 "$work/second.safetensors"
fresh_competition "$(last video_2)" "$work/third.safetensors"
mkdir -p "$work/video_3/cache"
cp -al "$work/video_2/cache/video" "$work/video_3/cache/video"
training_run video_3 "$work/third.safetensors"
python - "$(last video_3)" tiny.safetensors <<'PYTHON'
import sys

from safetensors.torch import load_file, save_file

save_file({k: v.half() for k, v in load_file(sys.argv[1]).items()}, sys.argv[2])
PYTHON
cd ../..
rvos-deploy export tiny --store fp16 --threshold 0.6 --out rvos_deploy/bundles/tiny --overwrite \
    --checkpoint benchmarks/checkpoints/tiny.safetensors --clip-weights "benchmarks/checkpoints/$clip"
