"""Run the host build under gcc's sanitizers: bad reads, misaligned vectors, overflows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sanitizers import sanitizer_environment

_CODE = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from deformable_attention import SCENARIOS, make_case
from rvos_deploy.engines.plugins.ms_deform_attn import host
from rvos_deploy.engines.plugins.ms_deform_attn.spec import TACTICS, TYPES, tactics_for

host._FLAGS += (
    "-g", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"
)
random = np.random.default_rng(13)
if len(sys.argv) > 2:
    wrong = make_case(random, TYPES[0])
    wrong.level_shapes[0] *= 40  # more pixels than there are
    wrong.sampling_offsets[:] = 0
    host.host_ms_deform_attn(*wrong.arrays)
    sys.exit("nothing was found")
cases = 0
for types in TYPES:
    for scenario in SCENARIOS:
        for number in (1, 4):
            case = make_case(random, types, scenario)
            if number not in tactics_for(types[0], case.value.shape[-1]):
                number = 1
            tactic = TACTICS[number]
            arrays = [array.copy() for array in case.arrays]
            if scenario == "plain" and types[1] != "bf16":
                arrays[3].flat[::7] = np.inf
                arrays[3].flat[::11] = np.nan
            host.host_ms_deform_attn(*arrays, tactic=tactic)
            cases += 1
print(cases)
"""


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = sanitizer_environment()
    return subprocess.run(
        [sys.executable, "-c", _CODE, str(Path(__file__).parents[1]), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )


def test_sanitizers_find_nothing() -> None:
    done = run_sanitized()
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "126"


def test_sanitizers_would_find_a_read_outside() -> None:
    done = run_sanitized("with wrong level shapes")
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
