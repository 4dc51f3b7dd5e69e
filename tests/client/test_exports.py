from __future__ import annotations

import inspect
import subprocess
import sys

import sharpzo_client
from sharpzo_client import AsyncClient, Client, errors, models


def _classes(module: object) -> set[str]:
    return {
        name
        for name, item in vars(module).items()
        if inspect.isclass(item)
        and item.__module__ == module.__name__  # type: ignore[attr-defined]
        and "[" not in name
    }


def test_all_agrees_with_the_modules() -> None:
    internal = {"Model", "PromptAnswers"}
    expected = _classes(errors) | _classes(models) - internal | {"Client", "AsyncClient"}
    assert set(sharpzo_client.__all__) == expected
    assert sharpzo_client.__all__ == sorted(sharpzo_client.__all__)


def test_the_tree_drawn_on_top_names_every_error() -> None:
    drawn = errors.__doc__ or ""
    assert [name for name in _classes(errors) - {"FieldFault"} if name not in drawn] == []


def test_every_status_error_is_in_the_table() -> None:
    leaves = {
        item
        for item in vars(errors).values()
        if inspect.isclass(item) and issubclass(item, errors.APIStatusError)
    }
    families = {errors.APIStatusError, errors.ServerError}
    assert set(errors.STATUS_ERRORS.values()) == leaves - families


def test_both_clients_have_the_same_surface() -> None:
    sync, asynchronous = Client(), AsyncClient()
    groups = [name for name in vars(sync) if not name.startswith("_")]
    assert groups == [name for name in vars(asynchronous) if not name.startswith("_")]
    for group in groups:
        one, other = type(getattr(sync, group)), type(getattr(asynchronous, group))
        calls = [name for name in vars(one) if not name.startswith("_")]
        assert calls == [name for name in vars(other) if not name.startswith("_")]
        for name in calls:
            here = inspect.signature(vars(one)[name]).parameters
            assert here == inspect.signature(vars(other)[name]).parameters, f"{group}.{name}"


def test_both_clients_classify_with_the_same_arguments() -> None:
    here, there = inspect.signature(Client.classify), inspect.signature(AsyncClient.classify)
    assert here.parameters == there.parameters


def test_importing_the_sdk_loads_nothing_heavy() -> None:
    code = (
        "import sys, sharpzo_client\n"
        "heavy = {'torch', 'numpy', 'PIL', 'sharpzo_engine', 'sharpzo_core'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
