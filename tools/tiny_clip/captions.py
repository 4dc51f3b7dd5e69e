"""Captions that name what a picture shows and a random part of its attributes."""

from typing import Final

import numpy as np

from tools.tiny_clip.glyphs import Concept, Kind
from tools.tiny_clip.style import Medium, Part, Style, Turn

MENTION_SHARE: Final = 0.3  # of the true attributes end up in a caption
PHOTO_TURN_SHARE: Final = 0.15  # of the captions of photos name the turn
PLAIN_SHARE: Final = 0.5  # of captions are "a <medium> of a <thing>" without attributes

_MEDIUM_WORDS: Final[dict[Medium, tuple[str, ...]]] = {
    Medium.PHOTO: ("photo",),
    Medium.DRAWING: ("drawing", "sketch"),
    Medium.SCAN: ("scan",),
    Medium.NEGATIVE: ("negative", "inverted scan"),
    Medium.SIGN: ("sign",),
}


def write_caption(concept: Concept, style: Style, rng: np.random.Generator) -> str:
    """A sentence about the picture; different pictures can have equal sentences."""
    plain = rng.random() < PLAIN_SHARE
    about_thing = [] if plain else _mention(_thing_words(concept, style), rng)
    about_picture = [] if plain else _mention(_picture_words(style), rng)
    thing = " ".join([*_turn_words(style, rng), *about_thing, _noun(concept, rng)])
    if style.part is not Part.WHOLE:
        thing = f"{style.part} of {_with_article(thing)}"
        subject = f"the {thing}"
    else:
        subject = _with_article(thing) if rng.random() < 0.85 else f"the {thing}"
    sentence = _frame(subject, about_picture, style, rng)
    if not plain and rng.random() < MENTION_SHARE:
        sentence += f" on a {style.paper} background"
    return sentence + ("." if rng.random() < 0.5 else "")


def _noun(concept: Concept, rng: np.random.Generator) -> str:
    if concept.kind is Kind.LETTER:
        return f"letter {concept.name}"
    if concept.kind is Kind.SHAPE:
        return concept.name
    name = concept.name if rng.random() < 0.75 else concept.character
    return str(rng.choice(("", "digit ", "number "), p=(0.7, 0.15, 0.15))) + name


def _turn_words(style: Style, rng: np.random.Generator) -> list[str]:
    """The turn is omitted only for photos, where an upside-down six is still a six."""
    mirrored = ["mirrored"] if style.mirrored else []
    if style.medium is Medium.PHOTO:
        return mirrored + ([str(style.turn)] if rng.random() < PHOTO_TURN_SHARE else [])
    return mirrored + ([] if style.turn is Turn.UPRIGHT else [str(style.turn)])


def _thing_words(concept: Concept, style: Style) -> list[str]:
    words = [style.ink]
    if concept.kind is Kind.SHAPE:
        words.append("filled" if style.filled else "hollow")
    else:
        words.append("handwritten" if style.handwritten else "printed")
    if not style.filled and style.thickness < 0.1:
        words.append("thin")
    if not style.filled and style.thickness > 0.16:
        words.append("thick")
    if style.size < 0.5:
        words.append("small")
    if style.size > 0.8:
        words.append("large")
    if abs(style.tilt) > 12:
        words.append("tilted")
    return words


def _picture_words(style: Style) -> list[str]:
    words = []
    if style.cells:
        words.append("pixelated" if style.blocky else "low resolution")
    if style.blur:
        words.append("blurry")
    if style.noise:
        words.append("noisy")
    if not (style.cells or style.blur or style.noise):
        words.append("clean")
    if style.exposure < 1:
        words.append("dark")
    if style.exposure > 1:
        words.append("bright")
    return words


def _mention(words: list[str], rng: np.random.Generator) -> list[str]:
    return [word for word in words if rng.random() < MENTION_SHARE]


def _frame(subject: str, about_picture: list[str], style: Style, rng: np.random.Generator) -> str:
    """The sentence around the thing: "a dark photo of ...", "..., blurry", or the thing alone."""
    is_photo = (
        style.medium is Medium.PHOTO
    )  # always named, because a photo may have any orientation
    words = _MEDIUM_WORDS[style.medium]
    if not is_photo and rng.random() < 0.25:
        words = ("image", "picture")
    form = rng.random()
    if is_photo or form < 0.75:
        picture = " ".join([*about_picture, str(rng.choice(words))])
        return f"{_with_article(picture)} of {subject}"
    if form < 0.85 or not about_picture:
        return subject
    return f"{subject}, {' '.join(about_picture)}"


def _with_article(words: str) -> str:
    """Add "a" or "an", depending on the first letter."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
