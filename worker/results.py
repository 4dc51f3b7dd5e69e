"""The results of a classification as JSON lines and as a table, one line per image."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any

from sharpzo_engine.errors import ImageError
from sharpzo_engine.prompts.classifier import Prediction
from worker.dataset_files import ListedImage

#: A spreadsheet reads a cell that begins with one of these as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Answer:
    """The predictions for one image, or why there are none."""

    predictions: Sequence[Prediction] = ()
    zero_shot: Sequence[Prediction] | None = None  #: None where it was not asked for
    error: ImageError | None = None


class ResultWriter:
    def __init__(self, lines: IO[str], table: IO[str], top_k: int, *, zero_shot: bool) -> None:
        """`top_k` is the number of predictions of each image that was read."""
        self._lines = lines
        self._table = csv.writer(table, lineterminator="\n")
        self._width = 2 * top_k * (1 + zero_shot)
        self._count = 0
        names = ["prediction", *["zero_shot"] * zero_shot]
        ranked = [
            column
            for name in names
            for rank in range(1, top_k + 1)
            for column in (f"{name}_{rank}", f"{name}_score_{rank}")
        ]
        fixed = ("index", "file", "split", "label", "error_code", "error_message")
        self._table.writerow([*fixed, *ranked])

    def write(self, image: ListedImage, answer: Answer) -> None:
        self._lines.write(json.dumps(self._line(image, answer), ensure_ascii=False) + "\n")
        self._table.writerow(self._row(image, answer))
        self._count += 1

    def _line(self, image: ListedImage, answer: Answer) -> dict[str, Any]:
        line: dict[str, Any] = {"index": self._count, "file": image.name}
        line |= {
            name: value
            for name, value in (("split", image.split), ("label", image.label))
            if value is not None
        }
        if answer.error is not None:
            return line | {"error": {"code": answer.error.code, "message": str(answer.error)}}
        line["predictions"] = [vars(prediction) for prediction in answer.predictions]
        if answer.zero_shot is not None:
            line["zero_shot"] = [vars(prediction) for prediction in answer.zero_shot]
        return line

    def _row(self, image: ListedImage, answer: Answer) -> list[str | int | float]:
        error = answer.error
        texts = (image.name, image.split, image.label, error and error.code, error and str(error))
        ranked: list[str | float] = list(
            chain.from_iterable(
                (as_cell(prediction.label), prediction.score)
                for prediction in (*answer.predictions, *(answer.zero_shot or ()))
            )
        )
        ranked += repeat("", self._width - len(ranked))
        return [self._count, *(as_cell(text or "") for text in texts), *ranked]


def as_cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


@contextmanager
def scratch_file(folder: Path) -> Iterator[IO[str]]:
    """A temporary text file; the housekeeper removes one that a killed worker left."""
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(
        "w", dir=folder, prefix=".", suffix=".tmp", encoding="utf-8", newline=""
    ) as file:
        yield file
