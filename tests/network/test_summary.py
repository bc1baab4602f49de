"""The summary's figures and the printed network."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from moehls.errors import MoehlsError
from moehls.frontend import read_network
from moehls.network.printer import print_network
from moehls.network.summary import summarise
from tests.frontend.support import fixture
from tests.network.test_interpreter import CHANNELS, EXPERTS, NETWORK, TASKS


def test_figures_of_a_small_network() -> None:
    summary = summarise(NETWORK)
    assert (summary.image, summary.patch) == ((2, 8, 12), (4, 4))
    assert (summary.tokens, summary.leading_tokens, summary.channels) == (7, 1, 8)
    assert (summary.tasks, summary.task_input) == (2, "task")
    (block,) = summary.blocks
    assert (block.heads, block.head_channels, block.feed_forward) == (2, 4, "experts")
    assert (block.hidden, block.experts, block.k, block.gate_order) == (5, 4, 2, "softmax, top-k")


def test_a_soft_mixture_is_part_of_its_block() -> None:
    blocks = summarise(read_network(fixture("soft_einsum-ts17"), {})).blocks
    assert [(block.feed_forward, block.experts, block.k) for block in blocks] == [("mlp", 0, 0), ("soft", 4, 2)]


@pytest.mark.parametrize(
    ("name", "bias"),
    [("plain-ts17", "none"), ("timm_beit_relative-ts17", "heads"), ("attention_hidden-ts17", "shared")],
)
def test_biases_and_masks_of_attention_are_shown(name: str, bias: str) -> None:
    assert {block.score_bias for block in summarise(read_network(fixture(name), {})).blocks} == {bias}


def test_a_network_without_attention_has_no_blocks() -> None:
    embed = NETWORK.operations[0]
    output = replace(NETWORK.outputs[0], value=embed.output)
    assert summarise(replace(NETWORK, operations=(embed,), outputs=(output,))).blocks == ()


def test_parameters_are_all_weights() -> None:
    embed = CHANNELS * 2 * 16 + CHANNELS + CHANNELS + 7 * CHANNELS
    linear = 2 * (CHANNELS * CHANNELS + CHANNELS)
    route = TASKS * (EXPERTS * CHANNELS + EXPERTS)
    experts = EXPERTS * (2 * 5 * CHANNELS + 5 + CHANNELS)
    assert summarise(NETWORK).parameters == embed + 2 * CHANNELS + linear + route + experts


def test_macs_count_the_chosen_experts_and_one_gate() -> None:
    embed = 6 * CHANNELS * 2 * 16
    linear = 2 * 7 * CHANNELS * CHANNELS
    attention = 2 * 7 * 7 * CHANNELS
    route = 7 * EXPERTS * CHANNELS
    experts = 7 * 2 * (2 * 5 * CHANNELS)
    assert summarise(NETWORK).macs == embed + linear + attention + route + experts


def test_the_summary_is_json() -> None:
    text = json.dumps(summarise(NETWORK).json())
    assert json.loads(text)["blocks"][0]["experts"] == 4


def test_a_network_without_an_embedding_is_refused() -> None:
    with pytest.raises(MoehlsError, match="0 patch embeddings"):
        summarise(replace(NETWORK, operations=NETWORK.operations[1:]))


def test_a_printed_network_has_a_line_an_operation() -> None:
    lines = print_network(NETWORK).splitlines()
    assert len(lines) == 1 + len(NETWORK.operations) + len(NETWORK.outputs)
    assert lines[0] == "network 'net': image 'image' [2, 8, 12], task 'task' of 2"
    assert lines[5] == "  attention0 [7, 8] = Attention(q, k, norm0)  heads 2, scale 0.5"
    assert lines[7].startswith("  route0 [7, 2] = Route(add0)  weight [2, 4, 8], bias [2, 4], k 2, normalisation all")
    assert lines[-1] == "output 'tokens' [1, 7, 8] = add0"
