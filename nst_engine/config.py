"""What one transfer is asked to do: every setting, validated, in one frozen model. Layers are named as in
Keras (block1_conv1 ... block5_conv4) and weighted one by one. A setting that is unknown or out of range is
refused with one sentence that names it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from nst_engine.errors import ConfigError
from nst_engine.vgg19 import CONVOLUTION_NAMES, Pooling

Normalization = Literal["gatys", "keras", "mean"]
TotalVariationForm = Literal["keras", "l1", "l2"]
Precision = Literal["auto", "float32", "tf32", "bfloat16"]
Init = Literal["content", "style", "grey", "noise"]

MAX_SIDE = 20_000
RANDOM_WEIGHTS = "random"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'rows'?" for the known word nearest to `word`, or a full stop."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else "."


def _parse_layers(value: Any) -> Any:
    """Accept "a,b", "a:2,b:1" and ["a", "b"] beside {"a": 2.0}; layers without weights share 1 equally."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        parts = [str(part).partition(":") for part in value]
        names = [name.strip() for name, _, _ in parts]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice} is given twice; name each layer once, with its weight as in {twice}:2.")
        return {name.strip(): weight if colon else 1 / len(parts) for name, colon, weight in parts}
    return value


def _known_layers(layers: dict[str, float]) -> dict[str, float]:
    if not layers:
        raise ValueError("needs at least one layer, such as block1_conv1.")
    for name in layers:
        if name not in CONVOLUTION_NAMES:
            raise ValueError(f"VGG19 has no convolution '{name}'{did_you_mean(name, CONVOLUTION_NAMES)}")
    return layers


def _none(value: Any) -> Any:
    return None if value == "none" else value


Layers = Annotated[dict[str, PositiveFloat], BeforeValidator(_parse_layers), AfterValidator(_known_layers)]
Side = Annotated[int, Field(ge=16, le=MAX_SIDE)]


class TransferConfig(BaseModel):
    """Every setting of one transfer. The defaults are those of the `default` preset.

    Sizes are in pixels, weights and learning rates in the losses' own units: each preset's weights belong to
    its normalisations and mean nothing under others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rows: Annotated[Side | None, BeforeValidator(_none)] = Field(
        400, description="rows of the result; the columns follow the content's shape"
    )
    long_edge: Annotated[Side | None, BeforeValidator(_none)] = Field(
        None, description="the result's longer side, instead of rows"
    )
    style_fit: Literal["stretch", "area", "edge"] = Field(
        "area",
        description="stretch: the style takes the content's size; area: it keeps its shape and has as many "
        "pixels; edge: it keeps its shape under the content's rule (rows or long_edge)",
    )
    content_layers: Layers = Field({"block4_conv2": 1.0}, description="content layers and their weights")
    style_layers: Layers = Field(
        {f"block{block}_conv1": 0.2 for block in range(1, 6)}, description="style layers and their weights"
    )
    content_weight: NonNegativeFloat = Field(1.0, description="alpha, the weight of the content loss")
    style_weight: NonNegativeFloat = Field(1e-3, description="beta, the weight of the style loss")
    tv_weight: NonNegativeFloat = Field(3e-5, description="the weight of the total variation")
    content_normalization: Normalization = Field(
        "mean", description="of the squared differences: gatys half their sum (eq. 1), keras the sum, mean"
    )
    gram_normalization: Normalization = Field(
        "mean",
        description="of the squared differences of the Gram matrices: gatys 1 / (4 N^2 M^2) (eq. 3), keras "
        "the same with N = 3 and M = rows * columns of the picture, mean 1 / (N^2 M^2)",
    )
    tv_form: TotalVariationForm = Field("l2", description="keras (squares to the power 1.25), l1 or l2")
    optimizer: Literal["sgd", "adam", "lbfgs"] = Field("lbfgs", description="sgd, adam or lbfgs")
    learning_rate: PositiveFloat = Field(1.0, description="of sgd and adam, in grey levels")
    decay_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="the learning rate is multiplied by this every decay_steps iterations, smoothly"
    )
    decay_steps: PositiveInt = Field(100, description="see decay_rate")
    beta_1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="adam's decay of the first moment")
    beta_2: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="adam's decay of the second moment")
    epsilon: PositiveFloat = Field(1e-7, description="adam's epsilon")
    history: Annotated[int, Field(ge=1, le=100)] = Field(10, description="steps that lbfgs remembers")
    iterations: Annotated[int, Field(ge=1, le=1_000_000)] = Field(60, description="steps of the optimiser")
    scales: Annotated[int, Field(ge=1, le=10)] = Field(
        1, description="sizes it works at one after another, from coarse to fine; 1: only the result's"
    )
    scale_factor: Annotated[float, Field(gt=1, le=10)] = Field(
        2.0, description="how many times as many rows and columns each scale has as the one before it"
    )
    scale_iterations: Annotated[PositiveInt | None, BeforeValidator(_none)] = Field(
        None, description="of the iterations, how many at each coarser scale; none: as many at every scale"
    )
    init: Init = Field("content", description="the picture it starts from: content, style, grey or noise")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of the noise")
    clip: bool = Field(False, description="keep every pixel displayable after each step (sgd and adam)")
    keep: Literal["last", "best"] = Field("last", description="the result: the last picture or that of least loss")
    pooling: Pooling = Field("max", description="max or average")
    precision: Precision = Field(
        "auto",
        description="of the feature maps: float32, tf32 (float32 whose products and convolutions a GPU of compute "
        "capability 8 or more may round to TensorFloat-32), bfloat16, or auto: bfloat16 where it is faster",
    )
    weights: Annotated[str, Field(min_length=1)] = Field(
        "imagenet", description="imagenet, random (seeded, for machines with none) or the path of a file"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.rows is None) == (self.long_edge is None):
            raise ValueError("Give either rows or long_edge, and 'none' for the other.")
        if self.clip and self.optimizer == "lbfgs":
            raise ValueError("clip works with sgd and adam, not with lbfgs; set clip=false.")
        if not (self.content_weight or self.style_weight):
            raise ValueError("content_weight and style_weight cannot both be 0: nothing would be left to do.")
        least = (self.scale_iterations or 1) * (self.scales - 1) + 1
        if self.iterations < least:
            raise ValueError(
                f"iterations = {self.iterations} leave none for the finest of {self.scales} scales; give at least "
                f"{least} in all, or fewer scales or scale_iterations."
            )
        return self

    def with_overrides(self, overrides: Mapping[str, Any]) -> TransferConfig:
        """This config with some settings changed; `rows` and `long_edge` replace each other.

        Raises ConfigError, one sentence for the first thing that is wrong.
        """
        settings = self.model_dump() | dict(overrides)
        for size, other in (("rows", "long_edge"), ("long_edge", "rows")):
            if overrides.get(size) is not None and other not in overrides:
                settings[other] = None
        try:
            return TransferConfig.model_validate(settings)
        except ValidationError as error:
            raise ConfigError(_sentence(error)) from error


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f"{key}: there is no such setting{did_you_mean(key, TransferConfig.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message
    if first["type"] == "value_error":
        return f"{key}: {message}"
    meaning = TransferConfig.model_fields[key].description
    setting = ".".join(str(part) for part in first["loc"])
    return f"{setting} = {first['input']}: {message[0].lower()}{message[1:]} ({meaning})."
