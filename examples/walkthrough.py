# %% [markdown]
# # A walk through the engine
#
# Tune a prompt on real scans of handwritten digits, and look at what happened. Run it cell by cell
# (VS Code, Spyder, or `jupytext --to notebook`), or as a whole: `python walkthrough.py [FOLDER]`
# leaves the plots in FOLDER.

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from sharpzo_cli.demo.digits import write_digits
from sharpzo_engine import (
    Progress,
    PromptClassifier,
    TuningConfig,
    load_backbone,
    load_dataset,
    tune,
)
from sharpzo_engine.prompts.evaluation import Assessment, Tally

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "walkthrough")
BLUE, ORANGE, GREY = "#3b82f6", "#f97316", "#8b8f98"

# %% [markdown]
# ## Data and model
# A folder per class is a dataset. `tiny` is bundled and works offline; for photos use a real CLIP,
# such as `load_backbone("ViT-B-16", pretrained="openai")`.

# %%
if not (folder / "digits").exists():
    write_digits(folder / "digits")
dataset = load_dataset(folder / "digits" / "dataset", shots=8)
backbone = load_backbone("tiny")
print(len(dataset.train), "images to train on,", len(dataset.test), "to test on")

# %% [markdown]
# ## Tune
# Stage 1 samples, stage 2 descends; both only use forward passes. `on_step` is called after every
# step.


# %%
def report(progress: Progress) -> None:
    """Print every twentieth step."""
    if progress.record and progress.step % 20 == 0:
        print(progress.phase_label, progress.step, progress.forward_passes, "passes")


config = TuningConfig(shots=8, max_forward_passes=2_500)
result = tune(dataset, backbone, config, on_step=report)
print({name: round(value, 3) for name, value in result.metrics.items()})

# %% [markdown]
# ## The curves
# The training loss of every step, and the validation loss when it was measured. Stage 1 reports the
# lowest loss of a generation, stage 2 the mean of a step's evaluations.

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for phase, colour in (("stage1", ORANGE), ("stage2", BLUE)):
    steps = [record for record in result.history if record.phase == phase]
    axes.plot(
        [record.forward_passes for record in steps],
        [record.loss for record in steps],
        color=colour,
        label=f"training, {phase}",
    )
validated = [record for record in result.history if record.val_loss is not None]
axes.plot(
    [record.forward_passes for record in validated],
    [record.val_loss for record in validated],
    color=GREY,
    linestyle="--",
    marker=".",
    label="validation",
)
axes.set(xlabel="forward passes", ylabel="cross-entropy", yscale="log", title="The search")
axes.yaxis.set_major_formatter("{x:g}")
axes.yaxis.set_minor_formatter("{x:g}")
axes.legend()
figure.savefig(folder / "curves.png", dpi=120)

# %% [markdown]
# ## Before and after, class by class
# The tuned prompt beside the words that it started from, on test images that are used only here.


# %%
def assess(classifier: PromptClassifier) -> Assessment:
    """Evaluate a classifier on the test images."""
    tally = Tally(dataset.class_names, classifier.prompt.temperature)
    images = classifier.embed([example.path for example in dataset.test])
    labels = np.array([example.label for example in dataset.test])
    tally.add(classifier.logits(images), labels)
    return tally.result()


classifier = PromptClassifier(result.prompt, backbone)
before, after = assess(classifier.zero_shot()), assess(classifier)
print(f"accuracy {before.accuracy:.1%} -> {after.accuracy:.1%}")

rows = np.arange(len(dataset.class_names))
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
for offset, colour, name, assessed in (
    (-0.2, GREY, "hand-written prompt", before),
    (0.2, BLUE, "tuned prompt", after),
):
    accuracies = [100 * (figures.accuracy or 0) for figures in assessed.classes]
    axes.barh(rows + offset, accuracies, 0.38, color=colour, label=name)
axes.set_yticks(rows, dataset.class_names)
axes.invert_yaxis()
axes.set(xlabel="accuracy, %", xlim=(0, 100), title="Classes before and after")
figure.legend(loc="outside lower center", ncols=2)
figure.savefig(folder / "classes.png", dpi=120)

# %% [markdown]
# ## Can you trust its probabilities?
# A reliability diagram: of images whose best class has a probability of about p, a share of p
# should be right. The temperature, fitted on validation images, corrects overconfident scores.

# %%
figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="ideal")
for colour, name, calibration in (
    (ORANGE, "uncalibrated", after.calibration),
    (BLUE, "calibrated", after.calibrated),
):
    if calibration is not None:
        filled = [part for part in calibration.bins if part.images]
        axes.plot(
            [part.confidence for part in filled],
            [part.accuracy for part in filled],
            color=colour,
            marker="o",
            label=f"{name}: calibration error {calibration.ece:.3f}",
        )
axes.set(
    xlabel="probability of the best class", ylabel="share that is correct", title="Reliability"
)
axes.legend(loc="upper left")
figure.savefig(folder / "reliability.png", dpi=120)

# %% [markdown]
# ## Save it
# The file holds prompt, head, temperature and lineage; the report is one page that is readable
# offline.

# %%
result.prompt.save(folder / "prompt.safetensors")
result.report.save(folder / "report.html")
print("plots, prompt and report are in", folder)
