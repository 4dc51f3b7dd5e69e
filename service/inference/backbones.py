"""The backbones that the API process serves; loaded on the model thread only."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from service.errors import Unavailable
from sharpzo_core.backbones import BackboneSpec, serving
from sharpzo_core.errors import BackboneNotServed
from sharpzo_engine.errors import BackboneError

if TYPE_CHECKING:
    from sharpzo_core.settings import Settings
    from sharpzo_engine import Backbone

logger = logging.getLogger(__name__)

#: name, pretrained and fingerprint, as a prompt records them
Described = Mapping[str, str | None]


class Backbones:
    """Loads each backbone once and keeps it."""

    def __init__(self, settings: Settings) -> None:
        self._specs = settings.backbone_specs
        self._device = settings.device
        self._dtype = settings.inference_dtype
        self._loaded: dict[str, Backbone] = {}

    @property
    def loaded(self) -> list[str]:
        """Names of the backbones in memory."""
        names = list(self._loaded)  # at once: the model thread may be adding one
        return sorted(names)

    def find(self, fingerprint: str | None) -> Backbone | None:
        """The backbone with these weights if it is in memory; from any thread."""
        found = (b for b in list(self._loaded.values()) if b.fingerprint == fingerprint)
        return next(found, None)

    def load(self, spec: BackboneSpec) -> Backbone:
        """The backbone of a spec.

        Raises:
            Unavailable: it cannot be loaded.
        """
        if spec.name not in self._loaded:
            from sharpzo_engine import load_backbone
            from sharpzo_engine.clip.parallel import keep_numpy_on_one_thread

            try:
                backbone = load_backbone(spec.model, spec.pretrained, self._device, alias=spec.name)
                backbone.encode_images_in(self._dtype)
            except BackboneError as error:
                logger.warning(
                    "backbone %s: %s", spec.name, error, extra={"action": "backbone_failed"}
                )
                raise Unavailable(error.code, f"backbone {spec.name} cannot be loaded") from error
            logger.info("loaded backbone %s", spec.name, extra={"action": "backbone_loaded"})
            self._loaded[spec.name] = backbone
            keep_numpy_on_one_thread()
            _spare_from_collection()
        return self._loaded[spec.name]

    def for_prompt(self, described: Described) -> Backbone:
        """The backbone whose fingerprint a prompt records.

        Raises:
            BackboneNotServed: none of those that are served here.
            Unavailable: the one it names cannot be loaded.
        """
        fingerprint = described.get("fingerprint")
        if (loaded := self.find(fingerprint)) is not None:
            return loaded
        for spec in serving(self._specs, described):
            backbone = self.load(spec)
            if backbone.fingerprint == fingerprint:
                return backbone
        raise BackboneNotServed


def _spare_from_collection() -> None:
    """Take what is there now, torch above all, out of every later search for cycles.

    Each would hold up all requests for a quarter of a second.
    """
    gc.collect()
    gc.freeze()
