"""The head of `aesthetic` and `imagereward`: linear layers with nothing between them but dropout, which is off when scoring."""

from collections.abc import Mapping

import torch
from torch.nn import functional

from rewards.base import RewardError


class LinearHead:
    """(n, d) features -> (n,) numbers, in float32, by `layers.<i>.weight` and `.bias` in the order of i; 768-1024-128-64-16-1 in both models."""

    def __init__(self, weights: Mapping[str, torch.Tensor], device: str) -> None:
        numbers = sorted(int(name.split(".")[1]) for name in weights if name.startswith("layers.") and name.endswith(".weight"))
        if not numbers or set(weights) != {f"layers.{number}.{kind}" for number in numbers for kind in ("weight", "bias")}:
            raise RewardError(f"These are not the weights of linear layers: {', '.join(sorted(weights)[:8])}.")
        self._layers = [(weights[f"layers.{n}.weight"].float().to(device), weights[f"layers.{n}.bias"].float().to(device)) for n in numbers]

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        for weight, bias in self._layers:
            features = functional.linear(features, weight, bias)
        return features.squeeze(-1)
