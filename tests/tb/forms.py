"""Whole frames in RTL of forms of models, from the ONNX file on: each compiled to a machine of its own, and every stage and
output of every task compared with the reference.

    python -m tests.tb.forms [fixture…]

Each takes a minute or two, most of it the build of its simulator.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from moehls import api
from moehls.frontend import read_network
from tests.frontend.support import fixture

FORMS = (
    "activations_two-dynamo20",
    "pre_norm_experts-dynamo20",
    "weighed_inputs-dynamo20",
    "soft_slots-ts17",
    "soft_unit-dynamo20",
    "capacity_choice-dynamo20",
    "capacity_kept-ts17",
    "gate_pruned_rest-ts17",
    "gate_selected_groups-dynamo20",
    "transformers_deepseek_v3-dynamo20",
    "transformers_qwen2_moe-dynamo20",
    "qk_norm_rms-ts17",
    "post_norm-dynamo20",
    "mean_then_norm-dynamo20",
    "published_room-dynamo20",
    "attention_bias_shared-dynamo20",
    "ort2_timm_beit_relative-ts17",
    "embed_norm_registers-dynamo20",
    "post_norm_first-ts17",
)
"""two activations, a stream that goes on from a norm, weighed inputs, soft mixtures, capacities, thresholds, DeepSeek's router,
SwiGLU with RMS normalisation, shared experts, normalised queries, means, class tokens behind a norm, a first block without one"""
SETTINGS = {"token_parallel": "2", "block": "8"}
"""of the machine that builds fastest"""


def frames(name: str, folder: Path) -> tuple[bool, str]:
    """Whether a frame of every task equals the reference, and what there is to say."""
    api.compile(fixture(name), folder, settings=SETTINGS)
    found = api.verify(folder, ["rtl"], samples=read_network(fixture(name), {}).tasks)
    (level,) = found.levels
    return found.passed, f"{level.samples} frames, {level.stages} stages" if found.passed else str(found.failure())


def main() -> None:
    failed = False
    for name in sys.argv[1:] or FORMS:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            passed, text = frames(name, Path(folder) / name)
        failed |= not passed
        print(f"{name:36} {'equal' if passed else 'DIFFERS'}: {text}, {time.monotonic() - begun:.0f} s", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
