"""Weights that a run has stored."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cohortium.errors import DataError, RequestError
from cohortium.runs.result import BEST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a checkpoint by name, and its metadata.

    Args:
        path: File of the weights.

    Raises:
        RequestError: There is no such file.
        DataError: The file is damaged, or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        if path.name == Path(BEST).name:
            raise RequestError(
                f"{path.parent.parent} keeps no best round: the run was not scored on validation "
                "images, which have to be public; use --weights last."
            )
        raise RequestError(f"{path.parent.parent} holds no weights: no round is complete yet.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - a file
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise DataError(f"{path} is no whole safetensors file ({error}); copy it anew.") from error


def rounds_of(notes: Mapping[str, str], path: Path) -> int:
    """Return the number of rounds after which weights were written, by their metadata.

    Raises:
        DataError: The metadata say none.
    """
    text = notes.get("rounds", "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise DataError(f"{path} does not say after which round it was written; copy it anew.")
    return int(text)


def score_of(notes: Mapping[str, str], path: Path) -> float:
    """Return the score with which weights were the best, by their metadata.

    Raises:
        DataError: The metadata say none.
    """
    try:
        found = float(notes.get("score", "none"))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise DataError(f"{path} does not say which score its weights had; copy it anew.")
    return found
