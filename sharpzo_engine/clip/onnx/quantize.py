"""Smaller copies of ONNX graphs: float16 weights, and int8 per channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

Floats = NDArray[np.float32]

#: Smaller weights stay in float32: they cost little memory.
MIN_WEIGHT = 1024
_LEVELS = 127  # of a symmetric int8


def weights_to_half(source: Path, target: Path) -> None:
    """Write the graph with float16 weights and float32 activations: half the size.

    Processors compute in float32 in any case; ONNX Runtime converts the weights when it loads them.
    """
    model = onnx.load(source)
    for tensor, array in _weights(model):
        stored = numpy_helper.from_array(array.astype(np.float16), f"{tensor.name}_half")
        cast = helper.make_node("Cast", [stored.name], [tensor.name], to=onnx.TensorProto.FLOAT)
        _replace(model, tensor, [stored], cast)
    onnx.save(model, target)


def weights_to_int8(source: Path, target: Path) -> None:
    """Write the graph with int8 weights and float32 activations, so that answers stay smooth.

    Every output channel of a product x W has its own scale: W ~ q * scale, q in -127..127.
    """
    model = onnx.load(source)
    factors = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    for tensor, array in _weights(model):
        if tensor.name not in factors or array.ndim != 2:
            continue
        largest = np.abs(array).max(axis=0)
        scale = np.where(largest > 0, largest / _LEVELS, 1).astype(np.float32)
        rounded = np.rint(array / scale).astype(np.int8)
        names = [f"{tensor.name}_int8", f"{tensor.name}_scale"]
        stored = [numpy_helper.from_array(rounded, names[0])]
        stored.append(numpy_helper.from_array(scale, names[1]))
        restore = helper.make_node("DequantizeLinear", names, [tensor.name], axis=1)
        _replace(model, tensor, stored, restore)
    onnx.save(model, target)


def _weights(model: onnx.ModelProto) -> list[tuple[onnx.TensorProto, Floats]]:
    """The large float32 constants of a graph."""
    tensors = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    arrays = [(tensor, numpy_helper.to_array(tensor)) for tensor in tensors]
    return [(tensor, array) for tensor, array in arrays if array.size >= MIN_WEIGHT]


def _replace(
    model: onnx.ModelProto,
    tensor: onnx.TensorProto,
    stored: Sequence[onnx.TensorProto],
    node: onnx.NodeProto,
) -> None:
    """Let `node` compute a constant from smaller ones."""
    model.graph.initializer.remove(tensor)
    model.graph.initializer.extend(stored)
    model.graph.node.insert(0, node)


def to_int8(source: Path, target: Path, pixels: Sequence[Floats] = ()) -> None:
    """Write the graph with int8 weights and activations.

    Without `pixels` (batches [B, 3, H, W]), activations are scaled by what each call brings, which
    only matrix products support; with them, by what these batches brought, which convolutions
    support as well.
    """
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    try:
        if len(pixels):
            quantize_static(
                str(prepared), str(target), _Batches(pixels), quant_format=QuantFormat.QDQ,
                per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        else:
            quantize_dynamic(
                str(prepared), str(target), per_channel=True, weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm"],
            )  # fmt: skip
    finally:
        prepared.unlink(missing_ok=True)


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Batches for calibration, one after the other."""

    def __init__(self, pixels: Sequence[Floats]) -> None:
        self._batches: Iterator[Floats] = iter(pixels)

    def get_next(self) -> dict[str, Any] | None:
        """The inputs of the next batch; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}
