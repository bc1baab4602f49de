"""Writes the front end's test fixtures: small exports of every form, by both exporters, over the opsets.

    python -m models.exports.frontend_fixtures tests/frontend/fixtures [name…]

Each file is named form-exporteropset.onnx and has random weights; the same call gives the same bytes.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import onnx
import torch
from torch import Tensor

from models.exports.forms import CHANNELS, GELUS, HEIGHT, IMAGE_WIDTH, TASKS, Form
from models.exports.gated import GatedForm, GatedVit
from models.exports.library_vits import HEADS as LIBRARY_HEADS
from models.exports.library_vits import LIBRARY_EXPERTS, LIBRARY_VITS, TOKEN_VITS, build
from models.exports.library_vits import WIDTH as LIBRARY_WIDTH
from models.exports.onnxruntime_graphs import folded, halved, optimised, with_fused_attention, with_moe
from models.exports.published import STYLES
from models.exports.quantised_graphs import quantised
from models.exports.small_vit import SmallVit
from models.exports.surroundings import SURROUNDED, SurroundedVit, example
from models.m3vit import initialise
from models.strip import strip

Exporter = Literal["ts", "dynamo"]

FORMS: dict[str, Form] = {
    "plain": Form(experts="none"),
    "embed_reshape": Form(embed="conv_reshape", experts="none"),
    "embed_channels_last": Form(embed="conv_last", experts="none"),
    "embed_normalised": Form(embed="conv_normalised", experts="none"),
    "embed_reversed": Form(embed="conv_reversed", experts="none"),
    "embed_bytes": Form(embed="conv_bytes", experts="none"),
    "embed_linear": Form(embed="linear", experts="none"),
    "embed_linear_channels_last": Form(embed="linear_channels_last", experts="none"),
    "no_class_token": Form(tokens="none", head="none", experts="none"),
    "position_first": Form(tokens="position_first", experts="none"),
    "registers": Form(tokens="registers", experts="none"),
    "distilled": Form(tokens="distilled", head="averaged", experts="none"),
    "norm_written": Form(norm="power", experts="none"),
    "norm_product": Form(norm="product", experts="none"),
    "norm_rsqrt": Form(norm="rsqrt", experts="none"),
    "three_matrices": Form(attention="three", experts="none"),
    "qkv_chunk": Form(attention="chunk", experts="none"),
    "qkv_index": Form(attention="index", experts="none"),
    "qkv_no_bias": Form(attention="no_bias", experts="none"),
    "sdpa": Form(attention="sdpa", experts="none"),
    "attention_open_mask": Form(attention="open_mask", experts="none"),
    "attention_zero_mask": Form(attention="zero_mask", experts="none"),
    **{
        f"attention_{name}": Form(attention=name, experts="none", head="all_tokens")
        for name in (
            "bias",
            "bias_scaled",
            "bias_shared",
            "bias_sdpa",
            "hidden",
            "hidden_filled",
            "hidden_low",
            "causal",
        )
    },
    "attention_bmm": Form(attention="bmm", experts="none"),
    "attention_einsum": Form(attention="einsum", experts="none"),
    "attention_scaled_query": Form(attention="scaled_query", experts="none"),
    "mlp_flat": Form(mlp="flat", experts="none"),
    "mlp_matrix_left": Form(mlp="matrix_left", experts="none"),
    "layer_scale": Form(scale=True, experts="none"),
    **{f"gelu_{name}": Form(gelu=name, experts="none") for name in GELUS},
    "head_before_norm": Form(head="before_norm", experts="none"),
    "head_norm_of_class": Form(head="norm_of_class", experts="none"),
    "head_all_tokens": Form(head="all_tokens", experts="none"),
    "heads_two": Form(head="two", experts="none"),
    "mean": Form(tokens="none", head="mean", experts="none"),
    "mean_then_norm": Form(head="mean_then_norm", experts="none"),
    "mean_of_patches": Form(head="mean_of_patches"),
    "mean_pool": Form(tokens="none", head="mean_pool", experts="none"),
    "mean_of_heads": Form(head="mean_of_heads", experts="none"),
    "experts_dense": Form(experts="dense"),
    "experts_bmm": Form(experts="bmm"),
    "experts_matmul_gates": Form(experts="matmul_gates"),
    "experts_loop": Form(experts="loop"),
    "experts_loop_sum": Form(experts="loop_sum"),
    "experts_stack_gather": Form(experts="stack_gather"),
    "experts_gather": Form(experts="gather"),
    "experts_gather_flat": Form(experts="gather_flat"),
    "experts_gather_slots": Form(experts="gather_slots"),
    "experts_index_add": Form(experts="index_add"),
    "experts_index_add_batch": Form(experts="index_add_batch"),
    "experts_repeat": Form(experts="repeat"),
    "experts_where": Form(experts="where"),
    "gate_one_assign": Form(gate="one", experts="assign"),
    "experts_mask_assign": Form(experts="mask_assign"),
    "experts_sorted": Form(experts="sorted"),
    "experts_sorted_scatter": Form(experts="sorted_scatter"),
    "experts_sorted_groups": Form(experts="sorted_groups"),
    "experts_condition": Form(experts="condition"),
    "experts_layer_scale": Form(experts="dense", scale=True),
    "gate_topk_softmax": Form(gate="topk_softmax"),
    "gate_renormalise": Form(gate="renormalise", experts="loop"),
    "gate_m3vit": Form(gate="m3vit", experts="gather"),
    "gate_scaled": Form(gate="scaled"),
    "gate_pruned": Form(gate="pruned", experts="loop"),
    "gate_pruned_chosen": Form(gate="pruned_renormalise"),
    "gate_pruned_rest": Form(gate="pruned_rest", experts="gather"),
    "gate_sigmoid": Form(gate="sigmoid", experts="loop"),
    "gate_sigmoid_chosen": Form(gate="sigmoid_renormalise"),
    "gate_topk_sigmoid": Form(gate="topk_sigmoid", experts="index_add"),
    "gate_grouped": Form(gate="grouped", experts="gather"),
    "gate_own_norm": Form(gate_input="own_norm"),
    "gate_residual": Form(gate_input="residual", experts="loop"),
    "gate_block_input": Form(gate_input="block", gate="topk_softmax"),
    "gate_first_norm": Form(gate_input="first_norm", experts="gather"),
    "capacity_choice": Form(experts="capacity", head="all_tokens"),
    "capacity_tokens": Form(experts="capacity_tokens", head="all_tokens"),
    "capacity_loop": Form(experts="capacity_loop", head="all_tokens"),
    "capacity_mask": Form(experts="capacity_mask", head="all_tokens"),
    "capacity_kept": Form(gate="pruned", experts="capacity_kept", head="all_tokens"),
    **{f"published_{style}": Form(experts=f"published_{style}", head="all_tokens") for style in STYLES},
    "soft_einsum": Form(experts="soft_einsum", head="all_tokens"),
    "soft_loop": Form(experts="soft_loop", head="all_tokens", scale=True),
    "soft_slots": Form(experts="soft_slots", head="all_tokens"),
    "soft_unit": Form(experts="soft_unit", head="all_tokens"),
    "task_stacked": Form(task="stacked"),
    "task_vector": Form(task="vector", experts="bmm"),
    "task_joined": Form(task="joined", experts="loop"),
    "task_some": Form(task="some"),
    "task_outputs": Form(task="unrolled", experts="gather"),
    "task_only0": Form(task="only0", experts="loop"),
    "task_only1": Form(task="only1", experts="dense"),
}
GATED: dict[str, GatedForm] = {
    "activation_silu": GatedForm(mlp="plain"),
    "activation_silu_written": GatedForm(mlp="plain", activation="silu_written"),
    "activation_relu": GatedForm(mlp="plain", activation="relu"),
    "activation_quick": GatedForm(mlp="plain", activation="quick"),
    "gated_silu": GatedForm(norm="rms_product"),
    "gated_fused": GatedForm(mlp="fused"),
    "gated_gelu": GatedForm(norm="rms_divide", activation="gelu"),
    "gated_relu": GatedForm(activation="relu", mlp="fused"),
    "norm_rms": GatedForm(norm="rms", mlp="plain"),
    "norm_rms_cast": GatedForm(norm="rms_cast", mlp="plain"),
    "norm_rms_product": GatedForm(norm="rms_product", mlp="plain"),
    "norm_rms_divide": GatedForm(norm="rms_divide", mlp="plain"),
    "qk_norm": GatedForm(mlp="plain", qk_norm="layer"),
    "qk_norm_rms": GatedForm(norm="rms_product", mlp="plain", qk_norm="rms_product"),
    "qk_norm_whole": GatedForm(mlp="plain", qk_norm="whole_rms_divide"),
    "gated_experts_index_add": GatedForm(norm="rms_cast", experts="index_add", gate="chosen"),
    "gated_experts_loop": GatedForm(norm="rms_product", experts="loop"),
    "gated_experts_dense": GatedForm(norm="rms_product", experts="dense"),
    "gated_experts_gather": GatedForm(norm="rms_product", experts="gather"),
    "shared_sum": GatedForm(norm="rms_cast", experts="loop", shared="sum", factor=2.5),
    "shared_sigmoids": GatedForm(norm="rms_cast", experts="index_add", gate="sigmoid", shared="sum", factor=2.5),
    "shared_gated": GatedForm(norm="rms_cast", experts="index_add", shared="gated"),
    "gate_selected": GatedForm(experts="index_add", gate="selected", factor=2.5),
    "gate_selected_groups": GatedForm(experts="loop", gate="selected_groups", factor=2.5, shared="sum"),
    "weighed_inputs": GatedForm(norm="rms_product", experts="dense", gate="inputs", shared="sum"),
    "weighed_inputs_loop": GatedForm(norm="rms_product", experts="loop", gate="inputs"),
    "weighed_inputs_gather": GatedForm(norm="rms_product", experts="gather", gate="inputs"),
    "weighed_inputs_index_add": GatedForm(norm="rms_product", experts="index_add", gate="inputs"),
    "activations_two": GatedForm(experts="loop", activation="silu", mlp_activation="gelu", mlp="plain"),
    "activations_gelus": GatedForm(experts="loop", activation="gelu_tanh", mlp_activation="gelu"),
    "pre_norm": GatedForm(activation="quick", mlp="plain", pre_norm=True),
    "post_norm": GatedForm(mlp="plain", experts="loop", pre_norm=True, post_norm=True),
    "post_norm_first": GatedForm(mlp="plain", experts="loop", post_norm=True),
    "embed_norm": GatedForm(activation="gelu", mlp="plain", pre_norm=True, tokens_last=True),
    "embed_norm_positions": GatedForm(mlp="plain", pre_norm=True, tokens_last=True, tokens="none"),
    "embed_norm_registers": GatedForm(
        norm="rms_product", experts="loop", pre_norm=True, tokens_last=True, tokens="registers"
    ),
    "pre_norm_experts": GatedForm(norm="rms_product", experts="index_add", gate="chosen", pre_norm=True),
}
OPSETS: dict[str, tuple[tuple[Exporter, int], ...]] = {
    "plain": (
        *(("ts", opset) for opset in range(11, 24)),
        *(("dynamo", opset) for opset in range(17, 24)),
    ),
    "gelu_tanh": (("ts", 11), ("ts", 17), ("dynamo", 20)),
    "experts_loop": (("ts", 11), ("ts", 14), ("ts", 17), ("dynamo", 20)),
    "experts_gather": (("ts", 14), ("ts", 17), ("dynamo", 20)),
    "experts_index_add": (("ts", 14), ("ts", 17), ("dynamo", 20)),
    "attention_open_mask": (("ts", 17), ("ts", 23), ("dynamo", 20), ("dynamo", 23)),
    "attention_bias_sdpa": (("ts", 17), ("dynamo", 20), ("dynamo", 23)),
    "attention_hidden": (("ts", 17), ("dynamo", 20), ("dynamo", 23)),
    "attention_causal": (("ts", 17), ("dynamo", 20), ("dynamo", 23)),
    "transformers_beit": (("dynamo", 20),),
    "transformers_beit_shared": (("dynamo", 20),),
    "timm_beit_relative": (("ts", 17), ("dynamo", 20), ("dynamo", 23)),
    "sdpa": (("ts", 17), ("ts", 23), ("dynamo", 18), ("dynamo", 23)),
    "gate_m3vit": (("ts", 17), ("ts", 23), ("dynamo", 20), ("dynamo", 23)),
    "timm_vit": (("ts", 17), ("ts", 23), ("dynamo", 20), ("dynamo", 23)),
    "timm_unfused": (("ts", 11), ("ts", 13), ("ts", 17), ("dynamo", 20)),
    "transformers_vit": (("ts", 17), ("ts", 23), ("dynamo", 20), ("dynamo", 23)),
    "transformers_unfused": (("ts", 11), ("ts", 13), ("ts", 17), ("dynamo", 20)),
    "gated_silu": (("ts", 17), ("dynamo", 20), ("dynamo", 23)),
    "norm_rms": (("dynamo", 20), ("dynamo", 23)),
    "task_stacked": (("ts", 17), ("ts", 23), ("dynamo", 18), ("dynamo", 23)),
}
DERIVED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "ort_optimised-ts17": ("plain-ts17", optimised),
    "ort_optimised_tanh-ts17": ("gelu_tanh-ts17", optimised),
    "ort_optimised_experts-ts17": ("experts_loop-ts17", optimised),
    **{
        f"ort{level}_{name}-ts17": (
            f"{name}-ts17",
            lambda model, level=level: optimised(model, heads=LIBRARY_HEADS, width=LIBRARY_WIDTH, level=level),  # type: ignore[misc]
        )
        for name in ("timm_vit", "timm_unfused", "timm_deit3", "transformers_vit", "transformers_unfused")
        for level in (0, 2)
    },
    **{
        f"onnxscript_{name}-{exporter}": (f"{name}-{exporter}", folded)
        for name in ("timm_vit", "transformers_vit", "experts_loop")
        for exporter in ("ts17", "dynamo20")
    },
    "qdq_timm_vit-ts17": ("timm_vit-ts17", lambda model: quantised(model, symmetric=True)),
    "qdq_plain-dynamo20": ("plain-dynamo20", lambda model: quantised(model, symmetric=True)),
    "qdq_plain-ts13": ("plain-ts13", lambda model: quantised(model, symmetric=True)),
    "qdq_products-dynamo20": ("plain-dynamo20", lambda model: quantised(model, symmetric=True, only_products=True)),
    "qdq_products-ts17": ("plain-ts17", lambda model: quantised(model, symmetric=True, only_products=True)),
    "qdq_tokens-ts17": ("tokens-ts17", lambda model: quantised(model, symmetric=True)),
    "qdq_experts-ts17": ("experts_loop-ts17", lambda model: quantised(model, symmetric=True, only_products=True)),
    "qdq_experts-dynamo20": ("experts_dense-dynamo20", lambda model: quantised(model, symmetric=True)),
    "qdq_gated-ts17": ("gated_silu-ts17", lambda model: quantised(model, symmetric=True)),
    "qdq_gated-dynamo20": ("gated_silu-dynamo20", lambda model: quantised(model, symmetric=True)),
    "qdq_gated_experts-ts17": ("gated_experts_loop-ts17", lambda model: quantised(model, symmetric=True)),
    "qdq_gated_experts-dynamo20": (
        "gated_experts_dense-dynamo20",
        lambda model: quantised(model, symmetric=True, only_products=True),
    ),
    "qdq_index_add-ts17": ("gated_experts_index_add-ts17", lambda model: quantised(model, symmetric=True)),
    "qdq_index_add-dynamo20": ("experts_index_add-dynamo20", lambda model: quantised(model, symmetric=True)),
    "qdq_selected-ts17": ("gate_selected_groups-ts17", lambda model: quantised(model, symmetric=True)),
    "qdq_selected-dynamo20": ("gate_selected-dynamo20", lambda model: quantised(model, symmetric=True)),
    "qdq_asymmetric-ts17": ("plain-ts17", lambda model: quantised(model, symmetric=False)),
    "qdq_asymmetric-dynamo20": (
        "plain-dynamo20",
        lambda model: quantised(model, symmetric=False, only_products=True),
    ),
    "ort2_timm_beit_relative-ts17": (
        "timm_beit_relative-ts17",
        lambda model: optimised(model, heads=LIBRARY_HEADS, width=LIBRARY_WIDTH, level=2),
    ),
    "ort_attention-ts17": ("plain-ts17", lambda model: with_fused_attention(model, fused=True)),
    "ort_multi_head-ts17": ("three_matrices-ts17", lambda model: with_fused_attention(model, fused=False)),
    "ort_moe-dynamo20": ("experts_dense-dynamo20", lambda model: with_moe(model, normalise=False)),
    "ort_moe_normalised-dynamo20": ("experts_dense-dynamo20", lambda model: with_moe(model, normalise=True)),
    "ort_half-ts17": ("plain-ts17", lambda model: halved(model, inputs=False)),
    "ort_half_inputs-dynamo20": ("experts_gather-dynamo20", lambda model: halved(model, inputs=True)),
}
"""Fixtures made of other fixtures, as onnxruntime's tools do."""
HALF: tuple[str, ...] = ("plain", "experts_loop", "timm_vit")
"""Forms also exported from float16 modules."""
DYNAMO_ONLY = (
    "torch_encoder",
    "experts_sorted",
    "experts_repeat",
    "gate_one_assign",
    "experts_condition",
    "published_switch",
    "transformers_dinov2_registers",
)
"""TorchScript cannot export torch's fast path of an encoder, an index_add with repeated rows, torch.cond, nor a bicubic resize
with antialiasing; rows written by a mask get the example's number of rows."""
USUAL: tuple[tuple[Exporter, int], ...] = (("ts", 17), ("dynamo", 20))
DYNAMIC: tuple[str, ...] = ("plain", "experts_dense", "timm_vit", "transformers_vit", "tokens")
"""Forms also exported with a named batch dimension."""


def export_form(
    form: Form | GatedForm, exporter: Exporter, opset: int, dynamic: bool = False, kind: torch.dtype = torch.float32
) -> bytes:
    """One ONNX file of a `SmallVit` or a `GatedVit`."""
    inputs: tuple[Tensor, ...] = (torch.randn(1, CHANNELS, HEIGHT, IMAGE_WIDTH),)
    if isinstance(form, Form) and form.embed == "conv_bytes":
        inputs = (torch.zeros(1, HEIGHT, IMAGE_WIDTH, CHANNELS, dtype=torch.uint8),)
    if isinstance(form, GatedForm):
        return export_module(GatedVit(form).eval(), inputs, exporter, opset, dynamic, kind)
    if form.task in ("stacked", "some", "vector", "joined"):
        inputs += (torch.eye(TASKS)[:1] if form.task == "vector" else torch.tensor(0),)
    return export_module(SmallVit(form).eval(), inputs, exporter, opset, dynamic, kind)


def export_module(
    model: torch.nn.Module,
    inputs: tuple[Tensor, ...],
    exporter: Exporter,
    opset: int,
    dynamic: bool = False,
    kind: torch.dtype = torch.float32,
) -> bytes:
    """One ONNX file of a module with random weights; its inputs are an image and perhaps a task."""
    initialise(model, 0)
    model = model.to(kind)
    inputs = (inputs[0].to(kind) if inputs[0].is_floating_point() else inputs[0], *inputs[1:])
    names = ["image", "task"][: len(inputs)]
    options: dict[str, Any] = {"opset_version": opset, "input_names": names}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if exporter == "ts":
            axes = {"image": {0: "batch"}} if dynamic else None
            buffer = io.BytesIO()
            torch.onnx.export(model, inputs, cast(Any, buffer), dynamo=False, dynamic_axes=axes, **options)
            proto = onnx.load_from_string(buffer.getvalue())
        else:
            shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None
            program = torch.onnx.export(model, inputs, dynamo=True, verbose=False, dynamic_shapes=shapes, **options)
            proto = cast(torch.onnx.ONNXProgram, program).model_proto
    strip(proto)
    del proto.graph.value_info[:]
    return bytes(proto.SerializeToString(deterministic=True))


def main(folder: Path, *only: str) -> None:
    """Write the fixtures whose names begin with one of `only`, or all, to `folder`."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [
        name
        for name in (*FORMS, *GATED, *SURROUNDED, *LIBRARY_VITS, *TOKEN_VITS, *LIBRARY_EXPERTS)
        if name.startswith(only or "")
    ]

    def write(name: str, file: str, exporter: Exporter, opset: int, **options: Any) -> None:
        if name in FORMS | GATED:
            content = export_form((FORMS | GATED)[name], exporter, opset, **options)
        elif name in SURROUNDED:
            form = SURROUNDED[name]
            content = export_module(SurroundedVit(form).eval(), (example(form),), exporter, opset, **options)
        else:
            model, image = build(name)
            content = export_module(model, (image,), exporter, opset, **options)
        (folder / f"{file}-{exporter}{opset}.onnx").write_bytes(content)

    for name in chosen:
        for exporter, opset in OPSETS.get(name, USUAL[1:] if name in DYNAMO_ONLY else USUAL):
            write(name, name, exporter, opset)
        for exporter, opset in USUAL:
            if name in DYNAMIC:
                write(name, f"{name}_dynamic", exporter, opset, dynamic=True)
            if name in HALF:
                write(name, f"{name}_half", exporter, opset, kind=torch.float16)
    for name, (source, change) in DERIVED.items():
        if name.startswith(only or ""):
            (folder / f"{name}.onnx").write_bytes(change((folder / f"{source}.onnx").read_bytes()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
