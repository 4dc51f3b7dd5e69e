"""The bundled `tiny` backbone: a small CLIP trained from scratch by `tools.tiny_clip.pretrain`.

Importing this package loads neither torch nor open_clip. MODEL_CARD.md describes the model.
"""

from pathlib import Path
from typing import Final

#: Folder with `open_clip_config.json` and `open_clip_model.safetensors` (open_clip's `local-dir:`).
PATH: Final = Path(__file__).resolve().parent

#: Model name for `open_clip.create_model_and_transforms`.
MODEL_NAME: Final = f"local-dir:{PATH}"

__all__ = ["MODEL_NAME", "PATH"]
