"""The hyperparameter list: presets, aliases, bounds."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from sharpzo_engine.config import ALIASES, PRESETS, TuningConfig
from sharpzo_engine.errors import ConfigError


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset: str) -> None:
    config = TuningConfig.parse(preset=preset)
    assert TuningConfig.model_validate_json(config.model_dump_json()) == config


def test_the_paper_preset_has_the_papers_values() -> None:
    config = TuningConfig.parse(preset="paper")
    assert (config.shots, config.total_steps, config.prompt.intrinsic_dim) == (16, 20_000, 512)
    cma, zo = config.cma, config.zo
    assert (cma.population_size, cma.sigma, cma.bound, cma.rho) == (40, 0.4, 5, 0.1)
    assert (zo.learning_rate, zo.rge_step, zo.queries) == (1e-3, 1e-3, 1)
    assert (zo.prune_ratio, zo.prune_interval, zo.mask) == (0.5, 200, "z-score")


@pytest.mark.parametrize("preset", PRESETS)
def test_only_our_own_presets_have_a_head(preset: str) -> None:
    head = TuningConfig.parse(preset=preset).head
    assert head == ("auto" if preset in ("default", "fast") else "none")


def test_a_dataset_preset_has_its_column_of_the_table() -> None:
    config = TuningConfig.parse(preset="imagenet")
    assert (config.cma.sigma, config.cma.cge_step, config.change_point) == (1.0, 1e-5, 200)
    assert (config.zo.learning_rate, config.cma.bound) == (0.1, None)


def test_values_win_over_the_preset() -> None:
    config = TuningConfig.parse({"cma": {"sigma": 0.2}}, "eurosat")
    assert (config.cma.sigma, config.change_point) == (0.2, 500)


def test_reference_names_are_accepted() -> None:
    values = {"popsize": 20, "zo_lr": 0.5, "num_pertub": 3, "intrinsic_dim": 64, "rho": 0.2}
    config = TuningConfig.parse(values)
    assert (config.cma.population_size, config.cma.rho) == (20, 0.2)
    assert (config.zo.learning_rate, config.zo.queries) == (0.5, 3)
    assert TuningConfig.model_validate(values) == config


def test_every_alias_leads_to_a_field() -> None:
    dump = TuningConfig().model_dump()
    for path in ALIASES.values():
        section = dump
        for key in path:
            assert key in section
            section = section[key]


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"learning_rate": 1}, ("learning_rate",)),
        ({"cma": {"sgima": 1}}, ("cma", "sgima")),
        ({"cma": {"sigma": 0.0}}, ("cma", "sigma")),
        ({"cma": {"sigma": float("nan")}}, ("cma", "sigma")),
        ({"cma": {"sigma": float("inf")}}, ("cma", "sigma")),
        ({"shots": "5"}, ("shots",)),
        ({"shots": True}, ("shots",)),
        ({"shots": 0}, ("shots",)),
        ({"seed": 2**63}, ("seed",)),
        ({"seed": -1}, ("seed",)),
        ({"change_point": -1}, ("change_point",)),
        ({"change_point": "soon"}, ("change_point",)),
        ({"method": "magic"}, ("method",)),
        ({"head": "tip-adapter"}, ("head",)),
        ({"cma": {"population_size": 10**9}}, ("cma", "population_size")),
        ({"prompt": {"projection_std": "wide"}}, ("prompt", "projection_std")),
        ({"cma": 3}, ("cma",)),
        ({"popsize": 0}, ("cma", "population_size")),
    ],
)
def test_faults_name_the_field(values: dict[str, object], path: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        TuningConfig.parse(values)
    assert [where for where, _ in caught.value.errors] == [path]
    assert ".".join(path) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        ({"zo": {"mask": "gradient"}}, "set zo.mask to none"),
        ({"method": "first-order"}, "set method to sharpzo"),
        ({"zo": {"optimizer": "adam"}}, "zo.optimizer to sgd"),
        ({"zo": {"optimizer": "gauss-newton"}}, "zo.optimizer to sgd"),
        ({"cma": {"ranking_precision": "bfloat16"}}, "set cma.ranking_precision"),
        ({"zo": {"anchor": 1.0}}, "set zo.anchor to 0"),
    ],
)
def test_the_reference_preset_refuses_what_the_released_code_does_not_have(
    values: dict[str, object], fix: str
) -> None:
    with pytest.raises(ConfigError, match=fix):
        TuningConfig.parse(values, "reference")


def test_unknown_presets_are_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset .*eurosat"):
        TuningConfig.parse(preset="imagnet")


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        TuningConfig().shots = 3  # type: ignore[misc]


def test_torch_free_modules_load_no_torch() -> None:
    code = (
        "import sys, sharpzo_engine.config, sharpzo_engine.errors, "
        "sharpzo_engine.data.layout_detection, "
        "sharpzo_engine.data.images, sharpzo_engine.data.dataset, sharpzo_engine.prompts.artifact, "
        "sharpzo_engine.data.preflight, sharpzo_engine.data.contact_sheet, "
        "sharpzo_engine.prompts.export; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
