"""What lists and lines show of names that nobody can trust."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime, timedelta

import pytest

from sharpzo_cli import formatting
from sharpzo_cli.main import main
from sharpzo_cli.output import print_facts, print_json, print_list, print_table, say
from sharpzo_client import Dataset, ImageResult, Job, JobEvent, Metrics, Prediction

HOSTILE = [
    "\x1b[2J\x1b[31mgone\x1b[0m",
    "\x1b]0;title\x07",
    "one\ntwo\r\t\b",
    "\u202egnp.exe",
    "\u2066isolated\u2069",
    "\x9b31m",
    "\udcff",
    "[red]markup[/red] [link=http://x]y[/link]",
    ":warning: {braces} %s \\n",
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def is_harmless(shown: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in shown)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_is_shown_and_does_nothing(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job.model_validate(
        {
            "id": "job_1", "status": name, "name": name, "phase": name, "dataset_id": name,
            "backbone": name, "metadata": {name: name}, "config": {name: name, "zo": {name: name}},
            "error": {"code": name, "message": name},
        }
    )  # fmt: skip
    event = JobEvent(seq=1, type=name, message=name, data={"phase": name})
    dataset = Dataset(id="ds_1", status=name, name=name, classes=(name,), splits={name: 1})
    label = Prediction(label=name, index=0, score=1.0)
    print_list(("ID", "NAME"), [("1", name)])
    print_table("", ("a", "b"), [(name, name)])
    print_facts([("name", name)])
    say(name)
    formatting.show_jobs([job])
    formatting.show_job(job, [event])
    formatting.show_outcome(job)
    formatting.show_datasets([dataset])
    formatting.show_dataset(dataset)
    formatting.show_labels([__file__], [ImageResult(predictions=(label,))])  # type: ignore[list-item]
    shown = capsys.readouterr().out
    assert is_harmless(shown)
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    assert shown.count(escaped) >= 10


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_an_error_says_a_hostile_name_and_does_nothing(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", f"no{name}"]) == 2
    shown = capsys.readouterr().err
    assert is_harmless(shown)
    assert len(shown.splitlines()) == 1


def test_only_the_last_column_is_cut_and_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    rows = [("job_" + 26 * "x", "succeeded", 200 * "n")]
    shown = []
    for out in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", out)
        print_list(("JOB", "STATUS", "NAME"), rows)
        shown.append(out.getvalue().splitlines()[-1].split())
    (job, status, name), whole = shown
    assert not any(line.endswith(" ") for line in sys.stdout.getvalue().splitlines())
    assert (job, status) == rows[0][:2]
    assert name.endswith("n…")
    assert len(job) + 2 + len(status) + 2 + len(name) <= 60
    assert tuple(whole) == rows[0]


def test_an_accuracy_says_what_it_was_measured_on() -> None:
    shown = formatting.accuracy_text
    assert shown(1.0, 15) == "100.0% (79.6-100.0, 15 images)"
    assert shown(0.75, 1200, interval=False) == "75.0% (1,200 images)"
    assert shown(0.0, 1) == "0.0% (0.0-79.3, 1 image)"
    assert shown(0.5, None) == shown(0.5, 0) == "50.0%"
    assert shown(None, 15) == "\u2013"


def test_only_accuracies_on_test_images_have_intervals() -> None:
    images = {"test_images": 10, "validation_images": 4}
    tested = Metrics(zero_shot_accuracy=0.4, val_accuracy=0.5, test_accuracy=0.6, **images)
    assert [value for _, value in formatting.measured(tested)] == [
        "40.0% (16.8-68.7, 10 images)",
        "50.0% (4 images)",
        "60.0% (31.3-83.2, 10 images)",
    ]
    untested = Metrics(zero_shot_accuracy=0.5, val_accuracy=0.75, **images | {"test_images": 0})
    assert [value for _, value in formatting.measured(untested)] == [
        "50.0% (4 images)",
        "75.0% (4 images)",
    ]
    evaluated = Metrics(zero_shot_accuracy=0.4, accuracy=0.6, macro_accuracy=0.5, images=10)
    assert [value for _, value in formatting.measured(evaluated)] == [
        "40.0% (16.8-68.7, 10 images)",
        "60.0% (31.3-83.2, 10 images)",
        "50.0% (10 images)",
        "10",
    ]


def test_bytes_of_a_name_that_are_not_utf_8_are_escapes_in_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json({"name": "a\udcff"})
    assert capsys.readouterr().out == '{"name": "a\\udcff"}\n'


def test_json_holds_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": "a\x9b31m\x7f\u202e\u2028\U000e0001\x1b[2J\n", "text": "é 猫 \U0001f600"}
    print_json(value)
    told = capsys.readouterr().out
    assert told.rstrip("\n").isprintable()
    assert "é 猫 \U0001f600" in told
    assert json.loads(told) == value


@pytest.mark.parametrize(
    ("ago", "shown"),
    [
        (timedelta(seconds=-5), "0s"),
        (timedelta(seconds=59), "59s"),
        (timedelta(minutes=59), "59m"),
        (timedelta(hours=23, minutes=59), "23h"),
        (timedelta(days=400), "400d"),
    ],
)
def test_ages_are_short(ago: timedelta, shown: str) -> None:
    assert formatting.age(datetime.now(UTC) - ago) == shown
