"""Tune on half of the classes, test on the other half: `base_to_new.py DATASET [ROOT]`."""

import sys

from sharpzo_engine import PromptClassifier, TuningConfig, load_backbone, load_dataset, tune

name, *root = sys.argv[1:]  # a folder, or a name such as eurosat and its parent folder
backbone = load_backbone("tiny")  # with a network: load_backbone("ViT-B-16", pretrained="openai")
where = root[0] if root else None
config = TuningConfig.parse({"shots": 4, "classes": "base", "head": "none"}, preset="fast")
tuned = tune(load_dataset(name, root=where), backbone, config)
new = load_dataset(name, root=where, classes="new")
classifier = PromptClassifier(tuned.prompt, backbone).with_classes(new.class_names)
answers = classifier.predict([example.path for example in new.test], top_k=1)
right = sum(a[0].index == e.label for a, e in zip(answers, new.test, strict=True))
b, n = tuned.metrics["test_accuracy"], right / len(new.test)
mean = 2 * b * n / (b + n) if b + n else 0.0
print(f"base {b:.1%}, new {n:.1%}, harmonic mean {mean:.1%}")
