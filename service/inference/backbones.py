"""The backbones that the API process serves; loaded on the model thread only."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from service.errors import Unavailable
from sharpzo_core.backbones import BackboneSpec, serving
from sharpzo_core.errors import BackboneNotServed
from sharpzo_engine.errors import BackboneError, MissingPackage

if TYPE_CHECKING:
    from sharpzo_core.settings import Settings
    from sharpzo_engine import Encoder

logger = logging.getLogger(__name__)

#: Seconds for which a request to a remote encoder is sent again, while requests here wait.
PATIENCE = 5.0
#: Name, pretrained and fingerprint, as recorded in a prompt.
Described = Mapping[str, str | None]


class Backbones:
    """Loads each backbone once and keeps it."""

    def __init__(self, settings: Settings) -> None:
        self._specs = settings.backbone_specs
        self._device = settings.device
        self._precision = settings.inference_precision
        self._loaded: dict[str, Encoder] = {}
        self._agreements: dict[str, float | None] = {}

    @property
    def loaded(self) -> list[str]:
        names = list(self._loaded)  # one atomic copy: the model thread may be adding one
        return sorted(names)

    def get(self, name: str) -> Encoder | None:
        """The loaded backbone of this name, or None; callable from any thread."""
        encoder = self._loaded.get(name)
        return None if encoder is None or _has_changed(encoder) else encoder

    def agreement(self, name: str) -> float | None:
        """The share of test pictures with the label of float32; None if float32 is served."""
        return self._agreements.get(name)

    def find(self, described: Described) -> Encoder | None:
        """The loaded backbone that a prompt records, or None; callable from any thread.

        Several may be one model in different precisions; then the recorded name decides.
        """
        name, fingerprint = described.get("name"), described.get("fingerprint")
        loaded = dict(self._loaded)  # one atomic copy: the model thread may be adding one
        same = {key: b for key, b in loaded.items() if b.fingerprint == fingerprint}
        if name in same:
            return same[name]
        if name in self._specs and name not in loaded:
            return None
        return next(iter(same.values()), None)

    def load(self, spec: BackboneSpec) -> Encoder:
        """Get the backbone of a spec, loading it if needed.

        Raises:
            Unavailable: it cannot be loaded.
        """
        if self.get(spec.name) is None:
            from sharpzo_engine import load_backbone
            from sharpzo_engine.clip.parallel import keep_numpy_on_one_thread

            try:
                backbone = load_backbone(
                    spec.model, spec.pretrained, self._device, alias=spec.name, patience=PATIENCE
                )
                self._apply_precision(spec.name, backbone)
            except (BackboneError, MissingPackage) as error:
                logger.warning(
                    "backbone %s cannot be loaded: %s",
                    spec.name,
                    error,
                    extra={"action": "backbone_failed"},
                )
                raise Unavailable(error.code, f"backbone {spec.name} cannot be loaded") from error
            logger.info("loaded backbone %s", spec.name, extra={"action": "backbone_loaded"})
            self._loaded[spec.name] = backbone
            keep_numpy_on_one_thread()
            _exclude_from_gc()
        return self._loaded[spec.name]

    def _apply_precision(self, name: str, backbone: Encoder) -> None:
        """Models in torch only: an exported encoder has the precision of its export."""
        from sharpzo_engine import Backbone
        from sharpzo_engine.clip.agreement import agreement_through

        if self._precision == "float32" or not isinstance(backbone, Backbone):
            return
        change = partial(backbone.encode_images_in, self._precision)
        self._agreements[name] = agreement_through(backbone, change).top1

    def for_prompt(self, described: Described) -> Encoder:
        """Get the backbone with the fingerprint that a prompt records.

        Raises:
            BackboneNotServed: no backbone served here has it.
            Unavailable: the backbone cannot be loaded.
        """
        if (loaded := self.find(described)) is not None:
            return loaded
        for spec in serving(self._specs, described):
            backbone = self.load(spec)
            if backbone.fingerprint == described.get("fingerprint"):
                return backbone
        raise BackboneNotServed


def _has_changed(encoder: Encoder) -> bool:
    """Whether a remote encoder has another model than when it was loaded."""
    from sharpzo_engine.clip.encoder import has_changed

    return has_changed(encoder)


def _exclude_from_gc() -> None:
    """Exclude all current objects, torch above all, from later garbage collections.

    Each of them would block all requests for a quarter of a second.
    """
    gc.collect()
    gc.freeze()
