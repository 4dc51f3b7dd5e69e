"""The SDK's models are written by hand; their fields are those of the API's schemas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from service.routes import health
from sharpzo_client import models as sdk
from sharpzo_core.schemas import aliases, base, classification, datasets, jobs, keys, prompts

if TYPE_CHECKING:
    from pydantic import BaseModel

PAIRS: list[tuple[type[BaseModel], type[BaseModel]]] = [
    (sdk.Alias, aliases.AliasHistoryPublic),  # without history it is an AliasPublic
    (sdk.AliasChange, aliases.AliasChangePublic),
    (sdk.ApiKey, keys.KeyPublic),
    (sdk.AuditEntry, keys.AuditPublic),
    (sdk.Backbone, prompts.BackbonePublic),
    (sdk.Checkpoint, jobs.CheckpointPublic),
    (sdk.Classification, classification.ClassifyAnswer),
    (sdk.Dataset, datasets.DatasetPublic),
    (sdk.ErrorInfo, base.ErrorPublic),
    (sdk.Health, health.Health),
    (sdk.ImageResult, classification.ClassifyResult),
    (sdk.Job, jobs.JobPublic),
    (sdk.JobEvent, jobs.EventPublic),
    (sdk.Lineage, prompts.LineagePublic),
    (sdk.Metrics, jobs.MetricsPublic),
    (sdk.NewApiKey, keys.KeyCreated),
    (sdk.Page, base.Page),
    (sdk.Prediction, classification.PredictionPublic),
    (sdk.Progress, jobs.ProgressPublic),
    (sdk.Prompt, prompts.PromptPublic),
    (sdk.PromptAnswer, classification.PromptAnswer),
    (sdk.PromptAnswers, classification.ClassifyAnswers),
    (sdk.PromptBackbone, prompts.PromptBackbone),
    (sdk.Quota, keys.QuotaPublic),
    (sdk.Residency, prompts.ResidencyPublic),
    (sdk.StepRecord, jobs.StepPublic),
    (sdk.Usage, keys.UsagePublic),
]

#: Of the SDK alone: the base class, and a line of a results file, which no schema describes.
UNPAIRED = {sdk.Model, sdk.ImageRecord}


@pytest.mark.parametrize(("model", "schema"), PAIRS, ids=lambda item: item.__name__)
def test_a_model_has_the_fields_of_its_schema(
    model: type[BaseModel], schema: type[BaseModel]
) -> None:
    assert set(model.model_fields) == set(schema.model_fields)


def test_every_model_has_its_schema() -> None:
    models = {
        item
        for item in vars(sdk).values()
        if isinstance(item, type) and issubclass(item, sdk.Model)
    }
    assert models - {model for model, _ in PAIRS} == UNPAIRED
