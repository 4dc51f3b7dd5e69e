"""Exported prompts against the prompt itself: the numbers, the bytes, and what a model tells."""

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from sharpzo_engine.clip.torch.backbone import Backbone
from sharpzo_engine.errors import NotCalibrated
from sharpzo_engine.prompts.artifact import Stacked, TunedPrompt
from sharpzo_engine.prompts.classifier import PromptClassifier
from sharpzo_engine.prompts.export import ExportFormat, Origin, classifier_matrix, export

ORIGIN = Origin("clothes", 3, "a" * 64)
TEMPERATURE = 2.5
NAMES = ("hat", "naïve shoe", "靴")
Floats = NDArray[np.float32]


def unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_prompt(
    clip: Backbone, *, head: bool, temperature: float | None = TEMPERATURE
) -> TunedPrompt:
    rng = np.random.default_rng(5)
    draw = rng.standard_normal((len(NAMES), clip.embed_dim)).astype(np.float32)
    metadata = {"backbone": clip.describe(), "head": {"temperature": temperature}}
    prompt = TunedPrompt(NAMES, unit(draw), np.ones((4, 32), np.float32), 20.0, metadata)
    bias = np.array([3, -1, -2], np.float32)
    return replace(prompt, stacked=Stacked(9 * draw, bias)) if head else prompt


def images(clip: Backbone, count: int = 7) -> Floats:
    rng = np.random.default_rng(6)
    return unit(rng.standard_normal((count, clip.embed_dim)).astype(np.float32))


def answer_of_npy(data: bytes, embeddings: Floats) -> Floats:
    matrix = np.load(io.BytesIO(data), allow_pickle=False)
    logits = np.column_stack([embeddings, np.ones(len(embeddings), np.float32)]) @ matrix.T
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    answer: Floats = exponents / exponents.sum(1, keepdims=True)
    return answer


def answer_of_onnx(data: bytes, embeddings: Floats) -> Floats:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (answer,) = session.run(["probabilities"], {"image_embedding": embeddings})
    found: Floats = answer
    return found


ANSWERS = {ExportFormat.NPY: answer_of_npy, ExportFormat.ONNX: answer_of_onnx}


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("form", ExportFormat)
def test_exports_answer_as_the_prompt(
    clip: Backbone, form: ExportFormat, head: bool, calibrated: bool
) -> None:
    prompt, embeddings = make_prompt(clip, head=head), images(clip)
    data = export(prompt, form, ORIGIN, calibrated=calibrated)
    temperature = TEMPERATURE if calibrated else 1.0
    expected = PromptClassifier(prompt, clip).probabilities(embeddings, temperature)
    np.testing.assert_allclose(ANSWERS[form](data, embeddings), expected, rtol=0, atol=1e-5)
    other = PromptClassifier(prompt, clip).probabilities(embeddings, 1 + TEMPERATURE - temperature)
    assert np.abs(expected - other).max() > 0.01


@pytest.mark.parametrize("form", ExportFormat)
def test_equal_prompts_are_equal_bytes(clip: Backbone, form: ExportFormat) -> None:
    files = {
        export(TunedPrompt.load(make_prompt(clip, head=True).to_bytes()), form, ORIGIN)
        for _ in range(5)
    }
    assert len(files) == 1
    assert export(make_prompt(clip, head=False), form, ORIGIN) not in files


def test_the_matrix_holds_the_bias_in_its_last_column(clip: Backbone) -> None:
    prompt = make_prompt(clip, head=True)
    data = export(prompt, ExportFormat.NPY, ORIGIN)
    matrix = np.load(io.BytesIO(data), allow_pickle=False)
    assert (matrix.dtype.str, matrix.shape) == ("<f4", (len(NAMES), clip.embed_dim + 1))
    assert matrix.flags.c_contiguous
    np.testing.assert_array_equal(matrix[:, :-1], prompt.weights)
    np.testing.assert_array_equal(matrix[:, -1], prompt.bias)


def test_the_model_is_valid_and_old_enough_for_everybody(clip: Backbone) -> None:
    data = export(make_prompt(clip, head=True), ExportFormat.ONNX, ORIGIN)
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10  # what onnxruntime 1.20 reads
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 17)]
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (given,), (told,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == (
        "image_embedding",
        "tensor(float)",
        ["N", clip.embed_dim],
    )
    assert (told.name, told.shape) == ("probabilities", ["N", len(NAMES)])


def test_the_model_normalises_by_itself(clip: Backbone) -> None:
    prompt, embeddings = make_prompt(clip, head=True), images(clip)
    data = export(prompt, ExportFormat.ONNX, ORIGIN)
    expected = answer_of_onnx(data, embeddings)
    lengths = np.geomspace(1e-3, 1e3, len(embeddings), dtype=np.float32)[:, None]
    np.testing.assert_allclose(
        answer_of_onnx(data, lengths * embeddings), expected, rtol=0, atol=1e-5
    )
    nothing = answer_of_onnx(data, np.zeros((1, clip.embed_dim), np.float32))
    bias = np.exp(prompt.bias)
    np.testing.assert_allclose(nothing[0], bias / bias.sum(), rtol=1e-5)
    assert answer_of_onnx(data, embeddings[:0]).shape == (0, len(NAMES))


def properties(data: bytes) -> dict[str, str]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    told: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return told


def test_the_model_tells_its_classes_and_origin(clip: Backbone) -> None:
    data = export(make_prompt(clip, head=False), ExportFormat.ONNX, ORIGIN, calibrated=True)
    told = properties(data)
    assert tuple(json.loads(told.pop("class_names"))) == NAMES
    assert told == {
        "prompt_name": "clothes",
        "prompt_version": "3",
        "prompt_sha256": "a" * 64,
        "backbone_name": "random",
        "backbone_fingerprint": clip.fingerprint,
        "temperature": "2.5",
        "calibrated": "true",
    }


def test_names_that_are_not_unicode_do_no_harm(clip: Backbone) -> None:
    prompt = replace(make_prompt(clip, head=False), class_names=("a", "b", "\udcff"))
    told = properties(export(prompt, ExportFormat.ONNX, Origin("\udcff", None, "")))
    assert json.loads(told["class_names"]) == ["a", "b", "\udcff"]
    assert told["prompt_name"] == "?"
    assert "prompt_version" not in told


@pytest.mark.parametrize("form", ExportFormat)
def test_without_a_temperature_nothing_is_calibrated(clip: Backbone, form: ExportFormat) -> None:
    prompt = make_prompt(clip, head=True, temperature=None)
    with pytest.raises(NotCalibrated, match=r"no temperature .* \(omit `calibrated`"):
        export(prompt, form, ORIGIN, calibrated=True)
    assert "temperature" not in properties(export(prompt, ExportFormat.ONNX, ORIGIN))
    np.testing.assert_array_equal(classifier_matrix(prompt)[:, -1], prompt.bias)


def test_without_the_package_the_error_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "import numpy as np\n"
        "from sharpzo_engine import TunedPrompt\n"
        "from sharpzo_engine.errors import MissingPackage\n"
        "from sharpzo_engine.prompts.export import ExportFormat, Origin, export\n"
        "eye = np.eye(2, dtype=np.float32)\n"
        "prompt = TunedPrompt(('a', 'b'), eye, eye, 1.0, {'backbone': {}})\n"
        "assert export(prompt, ExportFormat.NPY, Origin('p', 1, ''))\n"
        "try: export(prompt, ExportFormat.ONNX, Origin('p', 1, ''))\n"
        "except MissingPackage as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'sharpzo[export]'" in ran.stdout
