"""`TuningConfig`: the one list of hyperparameters, shared by REST, CLI, SDK and engine.

Frozen, bounded and torch-free. The class defaults are the `default` preset; the other presets are
overlays on it (`PRESETS`). Names of the reference code are accepted as input aliases (`ALIASES`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sharpzo_engine.data.class_names import MAX_CLASS_NAME, as_tokenised, display_name
from sharpzo_engine.errors import ConfigError

PositiveFloat = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Steps = Annotated[int, Field(ge=0, le=10_000_000)]


def _has_one_gap(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError("a template needs {} once, in place of the class name")
    return template


Template = Annotated[str, Field(min_length=3, max_length=200), AfterValidator(_has_one_gap)]

#: Forward passes after which more hardly change what is served, by a prompt alone and beside a head
#: (docs/method.md has the measurement).
ENOUGH_ALONE, ENOUGH_BESIDE_HEAD = 16_000, 4_000

#: The seven templates that Radford et al. (arXiv 2103.00020) found to be best on ImageNet.
TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def _as_class_name(name: str) -> str:
    """Write a name as the folder of that name is read."""
    name = display_name(name, {})
    if not name or not name.isprintable():
        raise ValueError("a class name needs letters, and no control characters")
    return name


ClassName = Annotated[
    str, Field(min_length=1, max_length=MAX_CLASS_NAME), AfterValidator(_as_class_name)
]
#: Classes with images that calibrating classes without images takes.
LEAST_CLASSES = 4

#: Values that may change when a run resumes: budgets, and what follows the search.
EXTENDABLE = ("total_steps", "max_forward_passes", "max_seconds", "head", "extra_classes")

#: Name in the reference code -> path of the field here.
ALIASES: dict[str, tuple[str, ...]] = {
    "prompt_trainer": ("method",),
    "intrinsic_dim": ("prompt", "intrinsic_dim"),
    "std": ("prompt", "projection_std"),
    "popsize": ("cma", "population_size"),
    "sigma": ("cma", "sigma"),
    "bound": ("cma", "bound"),
    "rho": ("cma", "rho"),
    "smoothness_estimator": ("cma", "sharpness_estimator"),
    "zo_eps_cge": ("cma", "cge_step"),
    "zo_lr": ("zo", "learning_rate"),
    "zo_eps_rge": ("zo", "rge_step"),
    "num_pertub": ("zo", "queries"),
    "prune_ratio": ("zo", "prune_ratio"),
    "prune_interval": ("zo", "prune_interval"),
}


class _StrictModel(BaseModel):
    """Base of the config models: frozen, strict, rejects unknown keys."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class PromptConfig(_StrictModel):
    """The learned context and the space it is searched in."""

    context: Annotated[str, Field(min_length=1, max_length=200)] = "a photo of a"
    """Words whose token embeddings the search starts from; their token count is M."""

    templates: Annotated[tuple[Template, ...], Field(max_length=100, strict=False)] = TEMPLATES
    """Sentences with `{}` for the class name. Their mean is a second zero-shot classifier, and says
    with `context` what a head knows of a class beside its images. CLIP's seven by default."""

    intrinsic_dim: Annotated[int, Field(ge=2, le=4096)] = 512
    """Dimension d of the search space."""

    projection: Literal["gaussian", "orthogonal"] = "orthogonal"
    """Law of the fixed random projection A (M*W x d): independent normal entries, or a random
    orthonormal frame of the same scale (better conditioned)."""

    projection_std: Literal["auto"] | PositiveFloat = "auto"
    """Standard deviation s_A of A's entries. `auto` gives context offsets of `projection_scale`
    times the rms of the context's own token embeddings at rms(w) = 1 (the rule of Black-Box
    Tuning, arXiv 2201.03514)."""

    projection_scale: PositiveFloat = 64.0
    """Factor of the `auto` rule."""


class CmaConfig(_StrictModel):
    """Stage 1: sharpness-aware CMA-ES."""

    population_size: Annotated[int, Field(ge=4, le=4096)] = 40
    """Candidates per generation, S."""

    sigma: PositiveFloat = 0.4
    """Initial step size of the search distribution."""

    bound: PositiveFloat | None = None
    """Half-width of a box on w; null means no bound."""

    covariance: Literal["diagonal", "full"] = "diagonal"
    """Shape of the adapted covariance. At d = 512 the full matrix hardly changes in a few hundred
    generations and costs O(d^2) in each."""

    rho: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)] = 0.1
    """Radius of the sharpness perturbation (Euclidean norm)."""

    sharpness_estimator: Literal["zo", "jvp", "fo", "none"] = "none"
    """How the sharpness direction is found: `zo` by coordinate-wise finite differences (2d forward
    passes), `jvp` by forward-mode derivatives (1 + d), `fo` by backpropagation (not forward-only),
    `none` for plain CMA-ES, which gains more from spending these passes on generations."""

    sharpness_interval: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Generations that share one sharpness direction."""

    cge_step: PositiveFloat = 1e-3
    """Finite-difference step mu of the coordinate-wise gradient."""

    step_size_adaptation: Literal["csa", "tpa"] = "csa"
    """How sigma follows the search: cumulative (Hansen and Ostermeier) or two-point adaptation.
    Set explicitly, because pycma's default depends on its version and on d."""

    ranking_precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the text tower when candidates are only ranked. Gradients always use float32,
    because bfloat16 is too coarse for finite differences."""


class ZoConfig(_StrictModel):
    """Stage 2: sparse zeroth-order SGD."""

    learning_rate: PositiveFloat = 0.1
    """Step size eta, at the start of the stage."""

    schedule: Literal["constant", "cosine"] = "cosine"
    """How eta runs over the stage's steps."""

    optimizer: Literal["auto", "sgd", "adam", "gauss-newton"] = "auto"
    """How steps are computed: `sgd` and `adam` follow an estimated gradient; `gauss-newton` uses a
    model of the class embeddings, which the objective must provide; `auto` is `gauss-newton` if it
    does and there is no mask, regardless of the estimator, else `adam`."""

    estimator: Literal["auto", "rge", "jvp"] = "auto"
    """How slopes along the directions are computed: `rge` by central differences (two forward
    passes each, any black box), `jvp` by forward-mode derivatives (one each plus one; exact),
    `auto` by `jvp` if the objective supports it."""

    rge_step: PositiveFloat = 1e-3
    """Finite-difference step mu of the random gradient."""

    queries: Annotated[int, Field(ge=1, le=4096)] = 16
    """Random directions per step, q."""

    directions: Literal["gaussian", "orthogonal"] = "orthogonal"
    """Law of the q directions of one step: independent, or made orthogonal to each other."""

    memory: Annotated[int, Field(ge=0, le=64)] = 4
    """Gauss-Newton: number of past steps whose directions are among the next q."""

    damping: PositiveFloat = 0.1
    """Gauss-Newton: initial Levenberg-Marquardt damping lambda."""

    anchor: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    """Strength mu of the penalty (mu / C) sum_c |T_c(w) - T_c(0)|^2 on the training loss of both
    stages. With 1 a context loses less on classes that it was not tuned on, at no pass."""

    mask: Literal["none", "z-score", "gradient"] = "none"
    """Which coordinates may move: all; the paper's pruning score w^2 z(g^2); or the largest |g|."""

    prune_ratio: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.5
    """Fraction of the coordinates that the mask keeps."""

    prune_interval: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    """Steps between two refreshes of the mask (a coordinate-wise gradient each)."""

    mask_step: PositiveFloat = 1e-3
    """Finite-difference step mu of the mask's coordinate-wise gradient."""


class TuningConfig(_StrictModel):
    """All settings of a run, except the dataset and the backbone."""

    method: Literal["sharpzo", "cma-es", "zo", "first-order"] = "sharpzo"
    """Which stages run: both, the first alone (BBT), the second alone (MeZO), or the second alone
    with gradients by backpropagation (CoOp), a baseline that is not forward-only."""

    training_view: Literal["centre", "random"] = "centre"
    """View of each training image: the centre crop, or one random crop and flip, drawn once (as in
    the released code)."""

    numerics: Literal["corrected", "reference"] = "corrected"
    """`reference` reproduces the numerical errors of the released code (listed in docs/method.md);
    use it only to compare results with that code."""

    selection: Literal["best", "last"] = "best"
    """Which point is the result: the best one on validation images, or the last one."""

    shots: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Training images per class."""

    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 1
    """Seed of the few-shot sample, the projection and the search."""

    classes: Literal["all", "base", "new"] = "all"
    """Classes to tune on: all, the first half (rounded up), or the other half. Shots are sampled
    before classes are dropped, as in CoOp."""

    validation: Literal["auto", "holdout", "official"] = "auto"
    """Images used for selection and the change point: `official` is the dataset's own validation
    split (at most `shots` per class); `holdout` is a quarter of the shots, at most 4 per class,
    held out of training; `auto` is the former if it exists."""

    total_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 2_000
    """Steps of both stages together: one generation, or one stage-2 update."""

    change_point: Literal["auto"] | Steps = "auto"
    """Generation after which stage 2 begins; `auto` when validation stops improving."""

    patience: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Generations without a better validation loss after which `auto` ends stage 1."""

    max_forward_passes: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Budget in evaluations of the loss; the run completes normally when it is used up. null ends
    the search when more hardly change what is served: after 4,000 beside a head, and with `head`
    none after 16,000 at most, or when validation has not improved for half of them."""

    max_seconds: PositiveFloat | None = None
    """Budget in seconds of tuning; the run completes normally when it is used up."""

    head: Literal["none", "gda", "linear", "auto"] = "auto"
    """What is served: with none the tuned prompt; with gda (Gaussian discriminant analysis) or
    linear (logistic regression) a classifier on image features, with a prompt if that is clearly
    better on unseen images; auto serves gda unless anything else is."""

    extra_classes: Annotated[tuple[ClassName, ...], Field(max_length=1000, strict=False)] = ()
    """Names of classes without images, which follow the dataset's. The search does not see them;
    the head `gda` answers for all classes, and knows these by their texts."""

    prompt: PromptConfig = Field(default_factory=PromptConfig)
    cma: CmaConfig = Field(default_factory=CmaConfig)
    zo: ZoConfig = Field(default_factory=ZoConfig)

    @model_validator(mode="before")
    @classmethod
    def _accept_reference_names(cls, data: Any) -> Any:  # noqa: ANN401 - raw input
        if not isinstance(data, Mapping):
            return data
        return _without_aliases(data)

    @model_validator(mode="after")
    def _reference_is_what_was_released(self) -> Self:
        """Reject settings that the released code does not have and would ignore."""
        if self.numerics == "corrected":
            return self
        if self.zo.mask != "none":
            raise ValueError(
                "numerics 'reference' has no mask: the released code's masked trainer fails at its "
                "first step (set zo.mask to none)"
            )
        if self.method == "first-order" or self.zo.optimizer not in ("auto", "sgd"):
            raise ValueError(
                "numerics 'reference' supports only SGD in stage 2 (set method to sharpzo, cma-es "
                "or zo, and zo.optimizer to sgd)"
            )
        if self.cma.ranking_precision != "float32":
            raise ValueError(
                "numerics 'reference' ranks in float32 (set cma.ranking_precision to float32)"
            )
        if self.zo.anchor:
            raise ValueError("numerics 'reference' has no anchor (set zo.anchor to 0)")
        return self

    @model_validator(mode="after")
    def _budget_holds_a_generation(self) -> Self:
        begins_with_cma = self.method in ("sharpzo", "cma-es") and self.change_point != 0
        budget = self.pass_limit
        if begins_with_cma and budget < self.cma.population_size:
            raise ValueError(
                f"max_forward_passes {budget} is less than one generation (raise it, or lower "
                f"cma.population_size {self.cma.population_size})"
            )
        return self

    @model_validator(mode="after")
    def _gauss_newton_moves_everything(self) -> Self:
        if self.zo.optimizer == "gauss-newton" and self.zo.mask != "none":
            raise ValueError("zo.optimizer gauss-newton has no mask (set zo.mask to none)")
        return self

    @model_validator(mode="after")
    def _extra_classes_are_new(self) -> Self:
        known: set[str] = set()
        for name in self.extra_classes:
            if as_tokenised(name) in known:
                raise ValueError(f"extra_classes name {name[:40]!r} twice (leave one out)")
            known.add(as_tokenised(name))
        if known and self.head in ("none", "linear"):
            raise ValueError(
                f"extra_classes need the head gda, not {self.head} (set head to auto or gda)"
            )
        return self

    def check_extra_classes(
        self, class_names: Sequence[str], *, has_texts: bool, has_judges: bool
    ) -> None:
        """Check that there can be classes without images beside those of the dataset.

        Args:
            class_names: the classes that have images.
            has_texts: whether the encoder knows texts.
            has_judges: whether there are two images per class, or validation images.

        Raises:
            ConfigError: there cannot; names the field and the way out.
        """
        if not self.extra_classes:
            return
        if not has_texts:
            raise _extra_classes_error(
                "are known by their texts, and the encoder knows none (choose an encoder of level "
                "texts or higher)"
            )
        known = {as_tokenised(display_name(name, {})): name for name in class_names}
        for name in self.extra_classes:
            if as_tokenised(name) in known:
                own = known[as_tokenised(name)][:40]
                raise _extra_classes_error(
                    f"name {name[:40]!r}, and the dataset has images of {own!r} (leave it out)"
                )
        if len(class_names) < LEAST_CLASSES:
            raise _extra_classes_error(
                f"are weighed by leaving out classes that have images, and {len(class_names)} are "
                f"too few (add images of more classes: {LEAST_CLASSES} or more)"
            )
        if not has_judges:
            raise _extra_classes_error(
                "are weighed on images that the head was not fitted to, and with one per class "
                "there are none (raise shots, or add validation images)"
            )

    def check_unlabelled(self) -> None:
        """Check that what is served can learn from images without labels.

        Raises:
            ConfigError: it cannot; names the field and the way out.
        """
        if self.head in ("none", "linear"):
            message = f"{self.head} learns nothing from unlabelled images (set it to auto or gda)"
            raise ConfigError(f"head: {message}", [(("head",), message)])
        if self.extra_classes:
            raise _extra_classes_error(
                "are weighed by leaving classes out, which unlabelled images do not allow (leave "
                "out one of the two)"
            )

    @property
    def pass_limit(self) -> int:
        """Evaluations of the loss after which the search ends at the latest."""
        if self.max_forward_passes is not None:
            return self.max_forward_passes
        return ENOUGH_ALONE if self.head == "none" else ENOUGH_BESIDE_HEAD

    @property
    def needs_derivatives(self) -> str | None:
        """The value that needs exact derivatives of the encoder; None if there is none."""
        if self.method == "first-order":
            return "method first-order"
        if self.zo.estimator == "jvp":
            return "zo.estimator jvp"
        if self.cma.sharpness_estimator in ("jvp", "fo"):
            return f"cma.sharpness_estimator {self.cma.sharpness_estimator}"
        return None

    @classmethod
    def parse(cls, values: Mapping[str, Any] | None = None, preset: str = "default") -> Self:
        """Apply `values` (nested, or with reference names) on top of a preset.

        Raises:
            ConfigError: unknown preset or key, or a value of the wrong type or out of range.
        """
        if preset not in PRESETS:
            message = f"unknown preset (choose one of: {', '.join(PRESETS)})"
            raise ConfigError(f"preset: {message}", [(("preset",), message)])
        try:
            return cls.model_validate(merge(PRESETS[preset], _without_aliases(values or {})))
        except ValidationError as error:
            raise config_error(error) from None


def config_error(error: ValidationError) -> ConfigError:
    """Translate pydantic's errors; the message never contains the rejected value."""
    messages: dict[tuple[str, ...], list[str]] = {}
    for fault in error.errors(include_url=False, include_input=False):
        messages.setdefault(_field_path(fault["loc"]), []).append(_say(fault["msg"], fault["type"]))
    # Each member of a union reports an error; together they list what is accepted.
    faults = [(path, ", or ".join(dict.fromkeys(texts))) for path, texts in messages.items()]
    text = "; ".join(f"{'.'.join(path) or 'config'}: {message}" for path, message in faults)
    return ConfigError(text, faults)


def _extra_classes_error(message: str) -> ConfigError:
    return ConfigError(f"extra_classes: {message}", [(("extra_classes",), message)])


def _field_path(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys that lead to a value, without the tags that pydantic adds for union members."""
    path: list[str] = []
    fields: Mapping[str, Any] = TuningConfig.model_fields
    for key in map(str, location):
        path.append(key)
        section = _SECTIONS.get(key)
        if key not in fields or section is None:
            break
        fields = section.model_fields
    return tuple(path)


def _say(message: str, kind: str) -> str:
    if kind == "extra_forbidden":
        return "unknown hyperparameter"
    return message.removeprefix("Value error, ")


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base`, recursively updated with `overlay`."""
    merged = dict(base)
    for key, value in overlay.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Sorted dotted paths of the values that are in both mappings and differ.

    A key that only one has was added by a later version, whose default is the earlier behaviour.
    """
    found: list[str] = []
    for key in sorted(one.keys() & other.keys()):
        a, b = one[key], other[key]
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += [f"{key}.{path}" for path in differing(a, b)]
        elif a != b:
            found.append(key)
    return found


def _without_aliases(values: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in values.items() if key not in ALIASES}
    for name, path in ALIASES.items():
        if name in values:
            plain = merge(plain, _nest(path, values[name]))
    return plain


def _nest(path: tuple[str, ...], value: object) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value  # type: ignore[return-value] # path is never empty


_SECTIONS: dict[str, type[BaseModel]] = {"prompt": PromptConfig, "cma": CmaConfig, "zo": ZoConfig}

_PAPER: dict[str, Any] = {
    "head": "none",
    "total_steps": 20_000,
    "max_forward_passes": 10**9,  # steps are its only budget
    "prompt": {"projection": "gaussian", "projection_std": 0.2},
    "cma": {"bound": 5.0, "covariance": "full", "sharpness_estimator": "zo"},
    "zo": {
        "estimator": "rge",
        "learning_rate": 1e-3,
        "queries": 1,
        "optimizer": "sgd",
        "schedule": "constant",
        "directions": "gaussian",
        "mask": "z-score",
        "mask_step": 1e-5,
    },
}

#: The released code's run script (its dense trainer), with the projection of most of its datasets.
_REFERENCE: dict[str, Any] = merge(
    _PAPER,
    {
        "numerics": "reference",
        "selection": "last",
        "training_view": "random",
        "change_point": 100,
        "zo": {"mask": "none"},
    },
)


def _paper(
    sigma: float, change_point: int, std: float = 0.2, cge_step: float = 1e-3, **more: float | None
) -> dict[str, Any]:
    """One column of the paper's Table 8; projection scale and box as in the released code."""
    return merge(
        _PAPER,
        {
            "change_point": change_point,
            "prompt": {"projection_std": std},
            "cma": {"sigma": sigma, "cge_step": cge_step, "bound": more.get("bound", 5.0)},
            "zo": {"learning_rate": more.get("learning_rate", 1e-3)},
        },
    )


#: Name -> overlay on the class defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": {"patience": 5, "max_forward_passes": 2_000},
    "paper": _PAPER,
    "reference": _REFERENCE,
    "imagenet": _paper(1.0, 200, 1.0, 1e-5, bound=None, learning_rate=1e-1),
    "caltech101": _paper(0.4, 200),
    "oxford_pets": _paper(0.1, 100),
    "stanford_cars": _paper(1.0, 100),
    "oxford_flowers": _paper(0.4, 500),
    "food101": _paper(0.1, 100, bound=None),
    "fgvc": _paper(0.2, 400, bound=None),
    "sun397": _paper(0.4, 400, learning_rate=1e-1),
    "dtd": _paper(0.4, 300, 1.0, 1e-5),
    "eurosat": _paper(0.4, 500, 1.0),
    "ucf101": _paper(0.1, 200),
}
