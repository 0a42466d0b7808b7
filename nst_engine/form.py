"""What of a config decides the shape of the computation, what targets depend on, and the numbers that come in from
outside: the weights of losses and styles. Pure Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nst_engine.config import Normalization, TotalVariationForm, TransferConfig, check_styles
from nst_engine.vgg19 import Padding, Pooling

_VARIATION_POWERS: Final = {"keras": 2.5, "l1": 1.0, "l2": 2.0}
"""Of the differences of pixels."""


@dataclass(frozen=True)
class Form:
    """What decides the shape of the computation: everything that a trace is made for, and no number in it.

    `masked`: each style has a mask. `equal_layers`: style losses are shares of what empty maps would have;
    `balanced`: those of the content too.
    """

    content_layers: tuple[str, ...]
    style_layers: tuple[str, ...]
    styles: int
    content_normalization: Normalization
    gram_normalization: Normalization
    tv_form: TotalVariationForm | None
    style_losses: tuple[str, ...]
    weighted_losses: bool
    weighted_styles: bool
    masked: bool
    equal_layers: bool
    balanced: bool
    normalize_gradients: bool
    pooling: Pooling
    padding: Padding
    dtype: str

    @classmethod
    def of(cls, config: TransferConfig, *, styles: int, dtype: str, masked: bool = False) -> Form:
        """The form of `config` with so many style pictures, and as many masks or none, and features in `dtype`."""
        return cls(
            content_layers=tuple(config.content_layers),
            style_layers=tuple(config.style_layers),
            styles=styles,
            content_normalization=config.content_normalization,
            gram_normalization=config.gram_normalization,
            tv_form=config.tv_form if config.tv_weight else None,
            style_losses=tuple(config.style_loss),
            weighted_losses=any(weight != 1 for weight in config.style_loss.values()),
            weighted_styles=config.style_weights is not None,
            masked=masked,
            equal_layers=config.equal_layers or config.balance is not None,
            balanced=config.balance is not None,
            normalize_gradients=config.normalize_gradients,
            pooling=config.pooling,
            padding=config.padding,
            dtype=dtype,
        )

    def named(self, layers: list[float]) -> dict[str, float]:
        """The layers' losses, contents first, under the names that `Losses` has for them."""
        names = [
            *(f"content/{layer}" for layer in self.content_layers),
            *(f"style/{layer}" for layer in self.style_layers),
        ]
        return dict(zip(names, layers, strict=True))

    @property
    def views(self) -> int:
        """How often the result is summed up: once for all styles, or for each with its mask or its bins."""
        return self.styles if self.masked or "histogram" in self.style_losses else 1

    @property
    def sampled(self) -> bool:
        """Whether single positions are looked at."""
        return "mmd-gaussian" in self.style_losses

    @property
    def content(self) -> ContentForm:
        """What the targets of the content depend on."""
        return ContentForm(self.content_layers, self.pooling, self.padding, self.dtype)

    @property
    def style(self) -> StyleForm:
        """What the targets of a style depend on, whatever the content and the other styles are."""
        return StyleForm(self.style_layers, self.style_losses, self.pooling, self.padding, self.dtype)


@dataclass(frozen=True)
class ContentForm:
    """The part of a form that decides the targets of a content picture."""

    layers: tuple[str, ...]
    pooling: Pooling
    padding: Padding
    dtype: str


@dataclass(frozen=True)
class StyleForm:
    """The part of a form that decides the targets of a style picture."""

    layers: tuple[str, ...]
    losses: tuple[str, ...]
    pooling: Pooling
    padding: Padding
    dtype: str


@dataclass(frozen=True)
class LossWeights:
    """What content, style and total variation of a picture are multiplied by; the mean of `styles` is 1."""

    content: float
    style: float
    tv: float
    losses: list[float]
    styles: list[float]

    @classmethod
    def of(cls, config: TransferConfig, *, pixels: int, styles: int) -> LossWeights:
        """The weights of `config` for a picture of so many pixels; raises ConfigError as `check_styles`."""
        check_styles(config, styles=styles)
        given = config.style_weights or (1.0,) * styles
        losses, shares = list(config.style_loss.values()), [styles * weight / sum(given) for weight in given]
        if config.balance is None:
            return cls(config.content_weight, config.style_weight, config.tv_weight, losses, shares)
        # The mean over pixels and channels of what pixels from 0 to 1 would have.
        scale = 1 / (3 * pixels * 255 ** _VARIATION_POWERS[config.tv_form])
        return cls(config.balance, 1.0, config.tv_weight * scale, losses, shares)
