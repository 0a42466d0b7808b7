"""What one transfer is asked to do: every setting, validated, in one frozen model. Layers are named as in
Keras (block1_conv1 ... block5_conv4) and weighted one by one. A setting that is unknown or out of range is
refused with one sentence that names it."""

from __future__ import annotations

import difflib
from collections import Counter
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
Init = Literal["content", "style", "grey", "noise", "picture"]
PreserveColor = Literal["no", "luminance", "histogram", "linear"]
ColorSpace = Literal["rgb", "yuv", "ycrcb", "lab", "luv"]
OutputFormat = Literal["png", "jpeg", "webp", "avif", "tiff"]
STYLE_LOSSES = ("gram", "mmd-linear", "mmd-gaussian", "moments", "wasserstein", "histogram")

MAX_SIDE = 20_000
_WEIGHTED = ("content_layers", "style_layers", "style_loss", "style_weights")
RANDOM_WEIGHTS = "random"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'rows'?" for the known word nearest to `word`, or a full stop."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else "."


def _parse_weights(value: Any) -> Any:
    """Accept "a,b", "a:2,b:1" and ["a", "b"] beside {"a": 2.0}; what has no weight shares 1 equally."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        parts = [str(part).partition(":") for part in value]
        names = [name.strip() for name, _, _ in parts]
        counts = Counter(names)
        if twice := next((name for name in names if counts[name] > 1), None):
            raise ValueError(f"{twice} is given twice; name each once, with its weight as in {twice}:2.")
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


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _known_losses(losses: dict[str, float]) -> dict[str, float]:
    if not losses:
        raise ValueError(f"needs at least one of {', '.join(STYLE_LOSSES)}.")
    for name in losses:
        if name not in STYLE_LOSSES:
            raise ValueError(f"there is no style loss '{name}'{did_you_mean(name, STYLE_LOSSES)}")
    return losses


def _parse_numbers(value: Any) -> Any:
    """Accept "2,1" beside [2, 1]."""
    if isinstance(value, str) and value != "none":
        return [part.strip() for part in value.split(",") if part.strip()]
    return _none(value)


Layers = Annotated[dict[str, PositiveFloat], BeforeValidator(_parse_weights), AfterValidator(_known_layers)]
StyleLosses = Annotated[dict[str, PositiveFloat], BeforeValidator(_parse_weights), AfterValidator(_known_losses)]
Side = Annotated[int, Field(ge=16, le=MAX_SIDE)]
Share = Annotated[float, Field(ge=0, le=1)]


class TransferConfig(BaseModel):
    """Every setting of one transfer. The defaults are those of the `default` preset.

    Sizes are in pixels, weights and learning rates in the losses' own units: each preset's weights belong to
    its normalisations and mean nothing under others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rows: Annotated[Side | Literal["content"] | None, BeforeValidator(_none)] = Field(
        400, description="rows of the result, the columns follow the content's shape; content: its own size"
    )
    long_edge: Annotated[Side | None, BeforeValidator(_none)] = Field(
        None, description="the result's longer side, instead of rows"
    )
    style_fit: Literal["stretch", "area", "edge", "crop"] = Field(
        "area",
        description="stretch: the style takes the content's size; area: it keeps its shape and has as many "
        "pixels; edge: it keeps its shape under the content's rule (rows or long_edge); crop: its middle is cut to "
        "the content's shape and takes the content's size",
    )
    style_scale: Annotated[float, Field(ge=0.05, le=20)] = Field(
        1.0, description="how many times as many rows and columns the style has as style_fit gives it"
    )
    style_size: Annotated[Side | None, BeforeValidator(_none)] = Field(
        None, description="the style's longer side, instead of what style_fit and style_scale give it"
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
    style_loss: StyleLosses = Field(
        {"gram": 1.0},
        description="what of the style's feature maps is matched, with weights: gram, mmd-linear, mmd-gaussian, "
        "moments (mean and deviation), wasserstein, histogram",
    )
    style_weights: Annotated[tuple[PositiveFloat, ...] | None, BeforeValidator(_parse_numbers)] = Field(
        None, description="of several styles, in their order; only their ratio counts; none: all alike"
    )
    equal_layers: bool = Field(
        False, description="each style layer's loss is the share of what empty feature maps would have there"
    )
    balance: Annotated[PositiveFloat | None, BeforeValidator(_none)] = Field(
        None,
        description="content weight : style weight as one number that means the same at every size, instead of "
        "content_weight, style_weight and the normalisations; none: those count",
    )
    normalize_gradients: bool = Field(
        False, description="the gradient of each layer's loss is divided by the sum of its absolute values"
    )
    feather: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0, description="pixels over which the edges of masks are blurred"
    )
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
    init: Init = Field(
        "content", description="the picture it starts from: content, style, grey, noise or picture (one that is given)"
    )
    init_noise: Share = Field(0.0, description="the share of noise in the picture that it starts from")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of the noise")
    clip: bool = Field(False, description="keep every pixel displayable after each step (sgd and adam)")
    keep: Literal["last", "best", "average"] = Field(
        "last", description="the result: the last picture, that of least loss, or a running average of all"
    )
    average_decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.99, description="of keep = average: the weight of a picture after each further iteration"
    )
    min_improvement: Share = Field(
        0.0, description="stop when the loss has not fallen by this share in `patience` iterations; 0: never"
    )
    patience: PositiveInt = Field(20, description="see min_improvement")
    preserve_color: PreserveColor = Field(
        "no",
        description="keep the content's colours: luminance (only that is stylised), or histogram or linear (matching "
        "of colours)",
    )
    color_when: Literal["before", "after"] = Field(
        "after", description="colours are matched before (the style's, to the content) or after (the result's)"
    )
    color_space: ColorSpace = Field("lab", description="where preserve_color works: rgb, yuv, ycrcb, lab or luv")
    format: OutputFormat = Field("png", description="of the result: png, jpeg, webp, avif or tiff")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(95, description="of jpeg, webp and avif")
    bits: Annotated[Literal[8, 16], BeforeValidator(_number)] = Field(
        8, description="a channel of the result; 16 with png and tiff"
    )
    keep_metadata: bool = Field(
        False, description="keep the content's EXIF data (camera, time, author), but not the place"
    )
    keep_location: bool = Field(False, description="with keep_metadata: keep the place too")
    pooling: Pooling = Field("max", description="max, average or l2 (root mean square)")
    padding: Literal["zeros", "replicate"] = Field(
        "zeros", description="around the picture, for the first convolution: zeros, or its border's pixels"
    )
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
        if self.normalize_gradients and self.optimizer == "lbfgs":
            raise ValueError(
                "normalize_gradients works with sgd and adam, not with lbfgs, which compares gradients with losses; "
                "set optimizer=adam."
            )
        if self.bits == 16 and self.format not in ("png", "tiff"):
            raise ValueError(f"{self.format} has 8 bits a channel; set bits=8, or format=png or tiff.")
        if self.keep_location and not self.keep_metadata:
            raise ValueError("keep_location needs keep_metadata=true.")
        if self.preserve_color == "luminance" and self.color_space == "rgb":
            raise ValueError("rgb has no luminance of its own; set color_space to yuv, ycrcb, lab or luv.")
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


def check_styles(config: TransferConfig, *, styles: int) -> None:
    """Raise ConfigError, one sentence, when `config` cannot be of a transfer with so many styles."""
    if config.style_weights is not None and len(config.style_weights) != styles:
        raise ConfigError(
            f"style_weights gives {len(config.style_weights)} weights for {styles} "
            f"{'style' if styles == 1 else 'styles'}; give one for each, in their order."
        )


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
    # What follows a key that takes several kinds of values is pydantic's name for one of them.
    setting = ".".join(map(str, first["loc"])) if key in _WEIGHTED else key
    return f"{setting} = {first['input']}: {message[0].lower()}{message[1:]} ({meaning})."
