"""The bundled `tiny` backbone: a small CLIP that `tiny.pretrain` trains from nothing.

Importing this package loads neither torch nor open_clip. MODEL_CARD.md says what it is for.
"""

from pathlib import Path
from typing import Final

#: Folder with `open_clip_config.json` and `open_clip_model.safetensors` (open_clip's `local-dir:`).
PATH: Final = Path(__file__).resolve().parent

#: What `open_clip.create_model_and_transforms` takes as its model name.
MODEL_NAME: Final = f"local-dir:{PATH}"

__all__ = ["MODEL_NAME", "PATH"]
