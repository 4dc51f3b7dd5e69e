"""Exports a tuned prompt for other programs: as a matrix in numpy's format, or as an ONNX model.

Neither needs SharpZO, and equal prompts give equal bytes. This module does not load torch.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import numpy as np

from sharpzo_engine.errors import MissingPackage
from sharpzo_engine.prompts.artifact import Floats, TunedPrompt

ONNX_INPUT = "image_embedding"
ONNX_OUTPUT = "probabilities"
#: Readable by every onnxruntime since 1.12 (2022).
OPSET, IR_VERSION = 17, 8
_SMALLEST_NORM = np.float32(1e-12)  # keeps an embedding of zeros, as torch's normalize does


class ExportFormat(StrEnum):
    """The file formats for an exported prompt."""

    NPY = "npy"  #: float32 [C, E + 1]; the bias is the last column
    ONNX = "onnx"  #: image_embedding [N, E] -> probabilities [N, C]


@dataclass(frozen=True)
class Origin:
    """Identifies the source of an exported prompt."""

    name: str
    version: int | None  #: None outside a registry
    sha256: str  #: of the prompt file


def export(
    prompt: TunedPrompt, form: ExportFormat, origin: Origin, *, calibrated: bool = False
) -> bytes:
    """The content of a file with the same predictions; rows are in the order of the classes.

    Args:
        prompt: the prompt to export.
        form: `npy` contains only numbers; `onnx` also class names and origin.
        origin: written into the metadata of an ONNX model.
        calibrated: divide the logits by the prompt's temperature.

    Raises:
        NotCalibrated: the prompt has no temperature.
        MissingPackage: the package onnx is not installed.
    """
    matrix = classifier_matrix(prompt, calibrated=calibrated)
    if form is ExportFormat.NPY:
        return _npy(matrix)
    return _onnx(matrix, _properties(prompt, origin, calibrated=calibrated))


def classifier_matrix(prompt: TunedPrompt, *, calibrated: bool = False) -> Floats:
    """The whole classifier [C, E + 1]: logits = [image, 1] @ matrix.T.

    Raises:
        NotCalibrated: `calibrated` is set, but the prompt has no temperature.
    """
    matrix = np.column_stack([prompt.weights, prompt.bias])
    if calibrated:
        matrix /= np.float32(prompt.require_temperature())
    return matrix


def _npy(matrix: Floats) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(matrix, "<f4"), version=(1, 0))
    return stream.getvalue()


def _properties(prompt: TunedPrompt, origin: Origin, *, calibrated: bool) -> dict[str, str]:
    backbone: Mapping[str, object] = prompt.metadata["backbone"]
    known = {
        "class_names": json.dumps(prompt.class_names),
        "prompt_name": origin.name,
        "prompt_version": origin.version,
        "prompt_sha256": origin.sha256,
        "backbone_name": backbone.get("name"),
        "backbone_pretrained": backbone.get("pretrained"),
        "backbone_fingerprint": backbone.get("fingerprint"),
        "temperature": prompt.temperature,
        "calibrated": json.dumps(calibrated),
    }
    # Names from files may contain lone surrogates, which protobuf rejects.
    return {
        key: str(value).encode("utf-8", "replace").decode()
        for key, value in known.items()
        if value is not None
    }


def _onnx(matrix: Floats, properties: Mapping[str, str]) -> bytes:
    """softmax(normalize(x) @ W.T + b); normalises, in case the caller did not."""
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "exporting to ONNX needs the package onnx (pip install 'sharpzo[export]')"
        ) from error
    classes, width = matrix.shape[0], matrix.shape[1] - 1
    constants = {
        "weights": np.ascontiguousarray(matrix[:, :-1]),
        "bias": np.ascontiguousarray(matrix[:, -1]),
        "smallest_norm": np.array(_SMALLEST_NORM),
    }
    tensor = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceL2", [ONNX_INPUT], ["norm"], axes=[-1], keepdims=1),
            helper.make_node("Max", ["norm", "smallest_norm"], ["safe_norm"]),
            helper.make_node("Div", [ONNX_INPUT, "safe_norm"], ["unit"]),
            helper.make_node("Gemm", ["unit", "weights", "bias"], ["logits"], transB=1),
            helper.make_node("Softmax", ["logits"], [ONNX_OUTPUT], axis=-1),
        ],
        "tuned_prompt",
        [tensor(ONNX_INPUT, shape=["N", width])],
        [tensor(ONNX_OUTPUT, shape=["N", classes])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="sharpzo",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(model, dict(properties))
    data: bytes = model.SerializeToString(deterministic=True)
    return data
