"""Pictures from a concept and a style: strokes or a bundled font, bent, coloured and degraded."""

from functools import lru_cache
from math import cos, radians, sin
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tools.tiny_clip.glyphs import Concept, Drawing, Point, Stroke
from tools.tiny_clip.style import PALETTE, Medium, Part, Style, Turn

Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]

IMAGE_SIZE: Final = 32  # pixels per side
_BOX: Final = 64  # pixels per side of the box a thing is drawn in
_CANVAS: Final = 104  # pixels per side of the sheet around that box
_SPLINE_STEPS: Final = 6  # straight pieces per spline segment
_COLOUR_JITTER: Final = 12.0  # grey levels

#: Picture coordinates, -1..1 from edge to edge.
_Y, _X = np.mgrid[-1 : 1 : IMAGE_SIZE * 1j, -1 : 1 : IMAGE_SIZE * 1j].astype(np.float32)


def render(concept: Concept, style: Style, rng: np.random.Generator) -> Pixels:
    """One picture, (IMAGE_SIZE, IMAGE_SIZE, 3)."""
    coverage = _place(_cut(_draw(concept, style, rng), style.part), style, rng)
    image = _paint(coverage, style, rng)
    if style.cells:
        image = _reduce(image, style)
    elif style.blur:
        image = image.filter(ImageFilter.GaussianBlur(style.blur * IMAGE_SIZE))
    return _expose(np.asarray(image, dtype=np.float32), style, rng)


def _draw(concept: Concept, style: Style, rng: np.random.Generator) -> Image.Image:
    """Coverage (mode L) of the upright, whole thing in the middle of the canvas."""
    if concept.character and not style.handwritten:
        return _print(concept.character, style)
    variant = concept.drawings[int(rng.integers(len(concept.drawings)))]
    return _pen(variant, style, rng)


def _print(character: str, style: Style) -> Image.Image:
    sheet = Image.new("L", (_CANVAS, _CANVAS))
    weight = round(style.thickness * 10)  # the font has one weight: a border makes it bolder
    ImageDraw.Draw(sheet).text(
        (_CANVAS / 2, _CANVAS / 2),
        character,
        fill=255,
        font=_font(80),
        anchor="mm",
        stroke_width=weight,
    )
    return sheet


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _pen(drawing: Drawing, style: Style, rng: np.random.Generator) -> Image.Image:
    sheet = Image.new("L", (_CANVAS, _CANVAS))
    draw = ImageDraw.Draw(sheet)
    width = max(2, round(style.thickness * _BOX))
    bend = _Bend(style.handwritten, rng)
    for stroke in drawing:
        points = [_to_canvas(point) for point in _flatten(bend(stroke))]
        if style.filled:
            draw.polygon(points, fill=255)
        draw.line(points, fill=255, width=width, joint="curve")
        for x, y in (points[0], points[-1]):  # round ends, because PIL's lines have none
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return sheet


class _Bend:
    """A smooth random deformation of the drawing plane, and an unsteady hand."""

    def __init__(self, handwritten: bool, rng: np.random.Generator) -> None:
        self._rng = rng
        self._shake = 0.03 if handwritten else 0.0  # of the box, standard deviation
        strength = 0.05 if handwritten else 0.01
        self._amplitude = rng.normal(0.0, strength, (2, 2))
        self._phase = rng.uniform(0.0, 2.0 * np.pi, (2, 2))

    def __call__(self, stroke: Stroke) -> Stroke:
        return Stroke(tuple(self._move(point) for point in stroke.points), stroke.curved)

    def _move(self, point: Point) -> Point:
        x, y = point
        shake = self._rng.normal(0.0, self._shake, 2) if self._shake else (0.0, 0.0)
        waves = self._amplitude * np.sin(4.0 * np.array([x, y]) + self._phase)
        dx, dy = waves.sum(axis=1)
        return float(x + dx + shake[0]), float(y + dy + shake[1])


def _flatten(stroke: Stroke) -> list[Point]:
    """The stroke as corner points; a curve is a Catmull-Rom spline through its points."""
    if not stroke.curved:
        return list(stroke.points)
    knots = np.asarray((stroke.points[0], *stroke.points, stroke.points[-1]))
    before, start, end, after = knots[:-3], knots[1:-2], knots[2:-1], knots[3:]
    t = np.linspace(0.0, 1.0, _SPLINE_STEPS, endpoint=False)[None, :, None]
    linear = (end - before)[:, None]
    square = (2 * before - 5 * start + 4 * end - after)[:, None]
    cube = (3 * start - before - 3 * end + after)[:, None]
    pieces = 0.5 * (2 * start[:, None] + linear * t + square * t**2 + cube * t**3)
    return [(float(x), float(y)) for x, y in (*pieces.reshape(-1, 2), stroke.points[-1])]


def _to_canvas(point: Point) -> Point:
    margin = (_CANVAS - _BOX) / 2
    return margin + _BOX * point[0], margin + _BOX * point[1]


def _cut(sheet: Image.Image, part: Part) -> Image.Image:
    """The sheet with all but `part` of the thing erased."""
    middle = _CANVAS // 2
    erased = {
        Part.TOP: (0, middle, _CANVAS, _CANVAS),
        Part.BOTTOM: (0, 0, _CANVAS, middle),
        Part.LEFT: (middle, 0, _CANVAS, _CANVAS),
        Part.RIGHT: (0, 0, middle, _CANVAS),
    }.get(part)
    if erased is not None:
        sheet.paste(0, erased)
    return sheet


def _place(sheet: Image.Image, style: Style, rng: np.random.Generator) -> Image.Image:
    """The thing turned, mirrored, scaled and shifted into a picture of twice the final size."""
    quarter = {Turn.UPRIGHT: 0.0, Turn.SIDEWAYS: 90.0, Turn.UPSIDE_DOWN: 180.0}[style.turn]
    angle = radians(quarter + style.tilt)
    side = 2 * IMAGE_SIZE
    zoom = _BOX / (style.size * side)  # canvas pixels per picture pixel
    stretch = float(np.exp(rng.normal(0.0, 0.12)))
    slack = max(0.0, 1.0 - style.size) / 2
    shift_x, shift_y = rng.uniform(-slack, slack, 2) * side + side / 2
    # Pillow needs the inverse map, from picture to canvas.
    a, b = cos(angle) * zoom * stretch, sin(angle) * zoom * stretch
    d, e = -sin(angle) * zoom, cos(angle) * zoom
    if style.mirrored:
        a, b = -a, -b
    c = _CANVAS / 2 - a * shift_x - b * shift_y
    f = _CANVAS / 2 - d * shift_x - e * shift_y
    placed = sheet.transform(
        (side, side), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )
    return placed.reduce(2)


def _paint(coverage: Image.Image, style: Style, rng: np.random.Generator) -> Image.Image:
    ink, paper = _colour(style.ink, rng), _colour(style.paper, rng)
    alpha = np.asarray(coverage, dtype=np.float32)[..., None] / 255.0
    pixels = (1.0 - alpha) * _surface(paper, style, rng) + alpha * ink
    if style.medium is Medium.PHOTO:
        pixels = pixels * _light(rng)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _colour(name: str, rng: np.random.Generator) -> Array:
    return (np.asarray(PALETTE[name]) + rng.normal(0.0, _COLOUR_JITTER, 3)).astype(np.float32)


def _surface(paper: Array, style: Style, rng: np.random.Generator) -> Array:
    """The background, (side, side, 3): the paper, or for a sign a plate in front of something."""
    surface = np.broadcast_to(paper, (IMAGE_SIZE, IMAGE_SIZE, 3))
    if style.medium is not Medium.SIGN:
        return surface
    round_plate = rng.random() < 0.5
    distance = np.hypot(_X, _Y) if round_plate else np.maximum(abs(_X), abs(_Y))
    plate = (distance < rng.uniform(0.8, 0.98))[..., None]
    behind = rng.uniform(0, 255, 3) + rng.normal(0.0, 15.0, (IMAGE_SIZE, IMAGE_SIZE, 3))
    return np.where(plate, surface, behind).astype(np.float32)


def _light(rng: np.random.Generator) -> Array:
    """Brightness falling off in a random direction, (side, side, 1)."""
    slope_x, slope_y = rng.normal(0.0, 0.2, 2).astype(np.float32)
    return np.asarray(1.0 + slope_x * _X + slope_y * _Y, dtype=np.float32)[..., None]


def _reduce(image: Image.Image, style: Style) -> Image.Image:
    """The picture as `style.cells` squared samples, enlarged again."""
    small = image.resize((style.cells, style.cells), Image.Resampling.BOX)
    method = Image.Resampling.NEAREST if style.blocky else Image.Resampling.BICUBIC
    return small.resize(image.size, method)


def _expose(pixels: Array, style: Style, rng: np.random.Generator) -> Pixels:
    pixels = pixels * np.float32(style.exposure)
    if style.noise:
        pixels = pixels + style.noise * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)
