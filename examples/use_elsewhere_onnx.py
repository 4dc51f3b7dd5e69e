"""Classify with an exported prompt, using onnxruntime and open_clip's image encoder.

python use_elsewhere_onnx.py prompt.onnx ViT-B-16 openai IMAGE...     (or: local-dir:PATH '')
Prints one JSON object per image: class name -> probability. The names are stored in the model.
"""

import json
import sys

import onnxruntime
import open_clip
import torch
from PIL import Image, ImageOps

file, name, tag, *paths = sys.argv[1:]
quick = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)  # as the weights need it
model, _, prepare = open_clip.create_model_and_transforms(name, tag, force_quick_gelu=quick)
photos = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in paths]
batch = torch.stack([prepare(photo) for photo in photos])
with torch.inference_mode():
    images = model.eval().encode_image(batch).numpy()
head = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
names = json.loads(head.get_modelmeta().custom_metadata_map["class_names"])
(rows,) = head.run(["probabilities"], {"image_embedding": images})  # the model normalises
for row in rows.tolist():
    print(json.dumps(dict(zip(names, row, strict=True))))
