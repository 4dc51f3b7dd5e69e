"""How a pretraining picture looks, except for what it shows.

A caption and its picture are made from the same `Style`, so captions are always true.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

import numpy as np

from tools.tiny_clip.glyphs import Concept, Kind

T = TypeVar("T")
Colour = tuple[int, int, int]

#: Colour names and their red, green and blue (0..255).
PALETTE: Final[Mapping[str, Colour]] = {
    "black": (15, 15, 15),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "red": (210, 35, 35),
    "green": (40, 150, 50),
    "blue": (35, 70, 205),
    "yellow": (240, 215, 40),
    "orange": (240, 135, 25),
    "purple": (130, 50, 160),
    "pink": (245, 150, 185),
    "brown": (115, 70, 35),
}

MIN_CONTRAST: Final = 90.0  # grey levels between ink and paper
DARK_INK_SHARE: Final = 0.8  # of coloured pictures have ink darker than the paper

#: How often a thing is upright, upside down, on its side. Photos are taken from any direction,
#: which captions do not say: "a photo of a six" is a poor description of an upright six.
_TURNS: Final = (0.94, 0.04, 0.02)
_PHOTO_TURNS: Final = (0.2, 0.5, 0.3)


class Medium(StrEnum):
    """The kind of picture; the word for it is its value."""

    PHOTO = "photo"  #: uneven light on a coloured surface, seen from any direction
    DRAWING = "drawing"  #: pen on pale paper
    SCAN = "scan"  #: grey, dark on light
    NEGATIVE = "negative"  #: grey, light on dark
    SIGN = "sign"  #: printed on a plate in front of something else


class Turn(StrEnum):
    """Orientation of the thing shown."""

    UPRIGHT = "upright"
    UPSIDE_DOWN = "upside down"
    SIDEWAYS = "sideways"  #: a quarter turn clockwise


class Part(StrEnum):
    """Which part of the thing is visible; the rest is cut off."""

    WHOLE = "whole"
    TOP = "top half"
    BOTTOM = "bottom half"
    LEFT = "left half"
    RIGHT = "right half"


@dataclass(frozen=True)
class Style:
    """The attributes of one picture."""

    medium: Medium
    #: Drawn by pen strokes; printed with a font or with straight edges otherwise.
    handwritten: bool
    #: Filled shape, or only its outline.
    filled: bool
    ink: str
    paper: str
    #: Height of the thing as a fraction of the picture's.
    size: float
    #: Pen width as a fraction of the thing's height.
    thickness: float
    turn: Turn
    mirrored: bool
    part: Part
    #: Small clockwise tilt, degrees.
    tilt: float
    #: Standard deviation of the Gaussian blur as a fraction of the picture's height.
    blur: float
    #: Cells per side the picture is reduced to before it is enlarged again; 0 leaves it alone.
    cells: int
    #: Whether the enlargement keeps hard cell edges.
    blocky: bool
    #: Standard deviation of the noise, grey levels.
    noise: float
    #: Factor on all grey levels.
    exposure: float


def draw_style(concept: Concept, rng: np.random.Generator) -> Style:
    """A random look for `concept`."""
    medium = _choose(rng, tuple(Medium), (0.3, 0.2, 0.22, 0.18, 0.1))
    ink, paper = _colours(medium, rng)
    handwritten = _is_handwritten(concept, medium, rng)
    cells = _cells(medium, rng)
    return Style(
        medium=medium,
        handwritten=handwritten,
        filled=concept.kind is Kind.SHAPE and rng.random() < 0.5,
        ink=ink,
        paper=paper,
        size=float(rng.choice((rng.uniform(0.4, 0.5), rng.uniform(0.65, 0.95)), p=(0.12, 0.88))),
        thickness=float(rng.uniform(0.06, 0.22)),
        turn=_choose(rng, tuple(Turn), _PHOTO_TURNS if medium is Medium.PHOTO else _TURNS),
        mirrored=bool(rng.random() < 0.06),
        part=_choose(rng, tuple(Part), (0.92, 0.02, 0.02, 0.02, 0.02)),
        tilt=float(rng.normal(0.0, 10.0)),
        blur=float(rng.uniform(0.025, 0.06)) if not cells and rng.random() < 0.2 else 0.0,
        cells=cells,
        blocky=bool(rng.random() < 0.5),
        noise=float(rng.uniform(12.0, 40.0)) if rng.random() < 0.15 else 0.0,
        exposure=float(rng.choice((rng.uniform(0.4, 0.7), 1.0, 1.4), p=(0.1, 0.8, 0.1))),
    )


def _choose(rng: np.random.Generator, options: tuple[T, ...], weights: tuple[float, ...]) -> T:
    return options[int(rng.choice(len(options), p=weights))]


def _is_handwritten(concept: Concept, medium: Medium, rng: np.random.Generator) -> bool:
    if not concept.drawings:
        return False
    if not concept.character:
        return bool(rng.random() < 0.5)
    share = {Medium.PHOTO: 0.4, Medium.DRAWING: 1.0, Medium.SIGN: 0.0}
    return bool(rng.random() < share.get(medium, 0.8))


def _cells(medium: Medium, rng: np.random.Generator) -> int:
    share = 0.4 if medium in (Medium.SCAN, Medium.NEGATIVE) else 0.1
    return int(rng.integers(8, 17)) if rng.random() < share else 0


def _colours(medium: Medium, rng: np.random.Generator) -> tuple[str, str]:
    if medium is Medium.SCAN:
        return "black", "white"
    if medium is Medium.NEGATIVE:
        return "white", "black"
    if medium is Medium.DRAWING:
        inks = tuple(name for name in PALETTE if luminance(PALETTE[name]) < 160)
        return str(rng.choice(inks)), "white"
    names = tuple(PALETTE)
    while True:
        ink, paper = (str(name) for name in rng.choice(names, 2, replace=False))
        if abs(luminance(PALETTE[ink]) - luminance(PALETTE[paper])) >= MIN_CONTRAST:
            break
    dark, light = sorted((ink, paper), key=lambda name: luminance(PALETTE[name]))
    return (dark, light) if rng.random() < DARK_INK_SHARE else (light, dark)


def luminance(colour: Colour) -> float:
    """Grey level (0..255) that `colour` appears as (Rec. 601 weights)."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue
