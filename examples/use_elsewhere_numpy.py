"""Classify with an exported prompt, using numpy and open_clip, without SharpZO.

python use_elsewhere_numpy.py prompt.npy ViT-B-16 openai IMAGE...     (or: local-dir:PATH '')
Prints the probabilities of each image, in the order of the prompt's classes.
"""

import sys

import numpy as np
import open_clip
import torch
from PIL import Image, ImageOps

file, name, tag, *paths = sys.argv[1:]
quick = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)  # as the weights need it
model, _, prepare = open_clip.create_model_and_transforms(name, tag, force_quick_gelu=quick)
photos = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in paths]
batch = torch.stack([prepare(photo) for photo in photos])
with torch.inference_mode():
    images = model.eval().encode_image(batch, normalize=True).numpy()
matrix = np.load(file)  # a row for each class, the bias in the last column
logits = images @ matrix[:, :-1].T + matrix[:, -1]
odds = np.exp(logits - logits.max(1, keepdims=True))
for path, row in zip(paths, odds / odds.sum(1, keepdims=True), strict=True):
    print(path, *row)
