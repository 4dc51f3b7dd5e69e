"""From a spec such as `remote:https://models.example.org/v1/encoders/clip` to an encoder."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from sharpzo_engine.clip.encoder import Encoder
from sharpzo_engine.clip.remote.connection import Connection
from sharpzo_engine.clip.remote.embeddings import EmbeddingsEncoder
from sharpzo_engine.clip.remote.encoder import RemoteEncoder
from sharpzo_engine.errors import BackboneError

#: The variable with the key that is sent to the servers of remote encoders.
KEY = "SHARPZO_ENCODER_KEY"


def load_remote(spec: str, name: str | None, patience: float) -> Encoder:
    """Load `remote:URL` or `openai-embeddings:URL#MODEL`; `name` takes the place of its own.

    A request is sent again for `patience` seconds.

    Raises:
        EncoderAway: the server does not answer.
        BackboneError: the address is not one, or leads to no such encoder.
    """
    kind, _, address = spec.partition(":")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise BackboneError(f"{spec[:200]!r} needs an address such as {kind}:https://HOST/PATH")
    url = parts._replace(fragment="").geturl()
    connection = Connection(url, os.environ.get(KEY), patience)
    if kind == "remote":
        return RemoteEncoder(connection, name=name)
    return EmbeddingsEncoder(connection, parts.fragment, name=name)
