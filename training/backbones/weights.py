"""Files of weights → state dicts, in the forms that people have them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from index.errors import DsclError

__all__ = ["WeightsError", "misfit", "read_state"]

#: Keys under which checkpoints of other training programs keep the state dict.
WRAPPERS = ("state_dict", "model")

#: Where a network of ours keeps its backbone's.
OURS = "backbone.network."

#: Keys that an error message names of each kind.
SHOWN = 3


class WeightsError(DsclError):
    """Weights that cannot be had, read, or that belong to another architecture."""

    code = "weights_invalid"


def read_state(path: Path) -> dict[str, Tensor]:
    """The backbone's state dict in ``path``: ``.safetensors``, a torch file or our model folder.

    What ``DataParallel`` or a training program wrapped around it is taken off. Nothing in the file
    is executed.

    Raises:
        WeightsError: there is no such file, or it is not a state dict.
    """
    if path.is_dir():
        path = path / "weights.safetensors"
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(
            f"--weights: {path} does not exist: give `imagenet`, `none`, or the path of a state "
            "dict (.pth, .safetensors) or model folder."
        ) from None
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} cannot be read as a state dict: {error}") from error
    if isinstance(state, dict):
        state = next((state[key] for key in WRAPPERS if key in state), state)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} is not a state dict (name → tensor).")
    named: dict[str, Tensor] = {key.removeprefix("module."): v for key, v in state.items()}
    if any(key.startswith(OURS) for key in named):
        return {k.removeprefix(OURS): v for k, v in named.items() if k.startswith(OURS)}
    return named


def misfit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """How ``state`` differs from ``own`` in keys and shapes, in words; None if it fits.

    Files from before PyTorch 0.4.1 lack BatchNorm's counters, which nothing here reads: they fit.
    """
    missing = sorted(
        key for key in own.keys() - state.keys() if not key.endswith(".num_batches_tracked")
    )
    unexpected = sorted(state.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if not (missing or unexpected or shapes):
        return None
    return (
        f"{_some('missing', missing)}; {_some('unexpected', unexpected)}; "
        f"{_some('of another shape', shapes)}"
    )


def _some(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:SHOWN]) + (", …" if len(keys) > SHOWN else "")
    return f"{len(keys)} {what}" + (f" ({shown})" if keys else "")
