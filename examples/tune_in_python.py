"""Tune a prompt in this process: `python tune_in_python.py PHOTOS IMAGE...`."""

import sys

from sharpzo_engine import PromptClassifier, TuningConfig, load_backbone, load_dataset, tune

folder, *images = sys.argv[1:]
backbone = load_backbone("tiny")  # with a network: load_backbone("ViT-B-16", pretrained="openai")
config = TuningConfig.parse({"shots": 4}, preset="fast")
result = tune(load_dataset(folder), backbone, config)
print({name: result.metrics[name] for name in ("zero_shot_accuracy", "test_accuracy")})
result.prompt.save("prompt.safetensors")
for image, predictions in zip(
    images, PromptClassifier(result.prompt, backbone).predict(images), strict=True
):
    print(image, predictions[0])
