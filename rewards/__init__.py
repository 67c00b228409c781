"""Reward models by name. Adding one: a file with a class like those of `base.Reward`, and a line in REWARDS.

    load("jpeg")                       one of REWARDS
    load("mine.py:darkness")           any function (images, prompts) -> one number for each picture, None = missing

Nothing is imported before it is asked for, and weights are read at the first score: a reward may need torch, open_clip or a
gigabyte of them. So a name is checked, and its scale known, at once.
"""

from collections.abc import Callable

from rewards.base import Reward, RewardError, Scores, score_safely
from rewards.guard import Guard

__all__ = ["REWARDS", "Guard", "Reward", "RewardError", "Scores", "load", "scale_of", "score_safely"]


def _aesthetic(device: str) -> Reward:
    from rewards.aesthetic import Aesthetic

    return Aesthetic(device=device)


def _clip_score(device: str) -> Reward:
    from rewards.clip_score import ClipScore

    return ClipScore(device=device)


def _hpsv2(device: str) -> Reward:
    from rewards.hpsv2 import HPSv2

    return HPSv2(device=device)


def _imagereward(device: str) -> Reward:
    from rewards.imagereward import ImageReward

    return ImageReward(device=device)


def _jpeg(_device: str) -> Reward:
    from rewards.jpeg import Jpeg

    return Jpeg()


def _jpeg_incompressible(_device: str) -> Reward:
    from rewards.jpeg import Jpeg

    return Jpeg(sign=1, name="jpeg_incompressible")


def _pickscore(device: str) -> Reward:
    from rewards.pickscore import PickScore

    return PickScore(device=device)


def _scene_check(_device: str) -> Reward:
    from rewards.scene_check import SceneCheck

    return SceneCheck()


def _vqa(device: str) -> Reward:
    from rewards.vqa import VQA

    return VQA(device=device)


REWARDS: dict[str, Callable[[str], Reward]] = {
    "aesthetic": _aesthetic,
    "clip_score": _clip_score,
    "hpsv2": _hpsv2,
    "imagereward": _imagereward,
    "jpeg": _jpeg,
    "jpeg_incompressible": _jpeg_incompressible,
    "pickscore": _pickscore,
    "scene_check": _scene_check,
    "vqa": _vqa,
}


def load(name: str, *, device: str = "cpu") -> Reward:
    """The reward model of that name, on a torch device. RewardError: no such reward, file or function."""
    if name in REWARDS:
        return REWARDS[name](device)
    if ".py:" in name:
        from rewards.function import Function

        return Function.load(name)
    raise RewardError(f"Unknown reward '{name}'. Choose from: {', '.join(sorted(REWARDS))}; or name your own as FILE.py:FUNCTION.")


def scale_of(name: str) -> float:
    """The nominal spread of a reward, without its weights. RewardError as `load`."""
    return load(name).scale
