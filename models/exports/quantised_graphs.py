"""Fixtures that went through onnxruntime's static quantiser, in its QDQ format.

In: an ONNX file of one input and how to quantise it. Out: the file with int8 weights and quantised activations, calibrated on
noise.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from models.strip import strip


class _Noise(CalibrationDataReader):  # type: ignore[misc]
    """Four images of noise."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        generator = np.random.default_rng(0)
        given = graph.input[0]
        shape = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
        self._feeds: Iterator[dict[str, Any]] = iter(
            [{given.name: generator.standard_normal(shape).astype(np.float32)} for _ in range(4)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def quantised(content: bytes, symmetric: bool, only_products: bool = False) -> bytes:
    """The graph quantised to 8 bits.

    Args:
        content: the float graph.
        symmetric: int8 activations with zero points of 0 and int8 weights a channel; else onnxruntime's own choice.
        only_products: quantise what Conv, MatMul and Gemm read and write, not every operator.
    """
    logging.getLogger().setLevel(logging.ERROR)
    options: dict[str, Any] = {}
    if symmetric:
        options = {"per_channel": True, "extra_options": {"ActivationSymmetric": True}}
    if only_products:
        options["op_types_to_quantize"] = ["Conv", "MatMul", "Gemm"]
        options["activation_type"] = QuantType.QInt8 if symmetric else QuantType.QUInt8
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "quantised.onnx"
        source.write_bytes(content)
        reader = _Noise(onnx.load_from_string(content).graph)
        quantize_static(source, target, reader, quant_format=QuantFormat.QDQ, **options)
        model = onnx.load(target)
    strip(model)
    del model.graph.value_info[:]
    return bytes(model.SerializeToString(deterministic=True))
