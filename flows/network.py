"""The network as documents for the command: its layer table and where its weights are."""

from __future__ import annotations

from typing import Any

from nst_engine import weights
from nst_engine.errors import WeightsError
from nst_engine.vgg19 import LAYERS


def layer_rows() -> list[dict[str, Any]]:
    """One row a layer as in the paper's table, with receptive field and stride in pixels."""
    return [
        {
            "layer": layer.name,
            "shape": f"(None, None, None, {layer.channels})",
            "parameters": layer.parameters,
            "receptive_field": layer.receptive_field,
            "stride": layer.stride,
        }
        for layer in LAYERS
    ]


def weights_document() -> dict[str, Any]:
    """Which file the weights "imagenet" mean here, by which rule, and whether it is whole and of the right shapes."""
    nothing = {"name": None, "path": None, "found_by": None, "sha256": None}
    try:
        found = weights.find("imagenet")
        if found is None:
            problem = "not on this machine yet; 'nst weights --fetch' downloads it, as the first job would."
            return nothing | {"path": str(weights.cache_path()), "verified": False, "problem": problem}
        loaded = weights.read(found.path)
    except WeightsError as error:
        return nothing | {"verified": False, "problem": str(error)}
    return {
        "name": loaded.name,
        "path": str(found.path),
        "found_by": found.found_by,
        "sha256": loaded.sha256,
        "verified": True,
        "problem": None,
    }
