"""SDK of the SharpZO service: upload images, tune a prompt on them, classify with it.

    from sharpzo_client import Client

    client = Client("http://localhost:8000")
    dataset = client.datasets.upload("photos/")
    job = client.jobs.wait(client.jobs.create(dataset.id).id, progress=True)
    print(client.prompts.classify(job.prompt_id, ["a.jpg"]).results[0].best)

The clients and models are loaded when first used, so that the command line starts quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sharpzo_client.errors import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    DatasetFailed,
    DeadlineExceededError,
    DownloadError,
    FieldFault,
    InputError,
    InsufficientStorageError,
    JobCancelled,
    JobEnded,
    JobFailed,
    MethodNotAllowedError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
    ServiceUnavailableError,
    SharpzoError,
    UnprocessableEntityError,
    UnsupportedMediaTypeError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from sharpzo_client.client import AsyncClient, Client
    from sharpzo_client.models import (
        Alias,
        AliasChange,
        ApiKey,
        AuditEntry,
        Backbone,
        Checkpoint,
        Classification,
        Dataset,
        ErrorInfo,
        Health,
        ImageRecord,
        ImageResult,
        Job,
        JobEvent,
        Lineage,
        Metrics,
        NewApiKey,
        Page,
        Prediction,
        Progress,
        Prompt,
        PromptAnswer,
        PromptBackbone,
        Quota,
        Residency,
        StepRecord,
        Usage,
    )

__all__ = [
    "APIConnectionError",
    "APIResponseError",
    "APIStatusError",
    "APITimeoutError",
    "Alias",
    "AliasChange",
    "ApiKey",
    "AsyncClient",
    "AuditEntry",
    "AuthenticationError",
    "Backbone",
    "BadRequestError",
    "Checkpoint",
    "Classification",
    "Client",
    "ConflictError",
    "Dataset",
    "DatasetFailed",
    "DeadlineExceededError",
    "DownloadError",
    "ErrorInfo",
    "FieldFault",
    "Health",
    "ImageRecord",
    "ImageResult",
    "InputError",
    "InsufficientStorageError",
    "Job",
    "JobCancelled",
    "JobEnded",
    "JobEvent",
    "JobFailed",
    "Lineage",
    "MethodNotAllowedError",
    "Metrics",
    "NewApiKey",
    "NotFoundError",
    "Page",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "Prediction",
    "Progress",
    "Prompt",
    "PromptAnswer",
    "PromptBackbone",
    "Quota",
    "RateLimitError",
    "RequestTimeoutError",
    "Residency",
    "ServerError",
    "ServiceUnavailableError",
    "SharpzoError",
    "StepRecord",
    "UnprocessableEntityError",
    "UnsupportedMediaTypeError",
    "Usage",
    "WaitTimeoutError",
]


def __getattr__(name: str) -> object:
    if name in ("client", "models"):
        return importlib.import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "client" if name.endswith("Client") else "models"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
