"""An architecture of `timm` as a program."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import attrs
import torch

from cohortium.plugin import NetworkError, StudyError, describe_fault, did_you_mean
from cohortium_backbone._program import read_program

if TYPE_CHECKING:
    from types import ModuleType

    from cohortium_backbone._graph import Program

CHANNELS = 3


def architecture_program(name: str, size: int) -> Program:
    """Return an architecture without its classifier, in evaluation mode, as a program.

    Its weights are not downloaded, and the drawn ones are dropped.

    Args:
        name: Name in `timm`, without a tag of weights.
        size: Side of the images in pixels.

    Raises:
        StudyError: `timm` has no such architecture.
        NetworkError: `timm` cannot be imported, or torch cannot export the architecture.
    """
    timm = _timm()
    if not timm.is_model(name):
        known = timm.list_models()
        raise StudyError(
            f"timm has no architecture '{name}' (model.architecture); {did_you_mean(name, known)}"
        )
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        try:
            net = timm.create_model(
                name, pretrained=False, num_classes=0, **_size(timm, name, size)
            )
            net.eval()
            content = _exported(net, size)
        except MemoryError:
            raise
        except Exception as error:
            raise NetworkError(
                f"timm's '{name}' cannot be made for images of {size} pixels "
                f"({describe_fault(error)}); set model.size or choose another architecture."
            ) from error
        program = read_program(content, f"timm's '{name}'")
        saved = net.state_dict().keys()
        made = {
            key: tensor.detach().clone() for key, tensor in net.named_buffers() if key not in saved
        }
    classifier = (getattr(net, "default_cfg", None) or {}).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return attrs.evolve(
        program,
        made=made,
        optional_prefixes=tuple(f"{head.partition('.')[0]}." for head in heads),
    )


def _timm() -> ModuleType:
    try:
        import timm
    except Exception as error:
        raise NetworkError(
            f"model.architecture needs timm, which cannot be imported ({describe_fault(error)}); "
            "install cohortium[timm], with a torchvision of torch's own build."
        ) from error
    found: ModuleType = timm
    return found


def _size(timm: Any, name: str, size: int) -> dict[str, int]:
    """Return the argument of an architecture that is made for one size of images."""
    config = timm.get_pretrained_cfg(name)
    return {"img_size": size} if config is not None and config.fixed_input_size else {}


def _exported(net: torch.nn.Module, size: int) -> bytes:
    images = torch.zeros(2, CHANNELS, size, size)
    batch = torch.export.Dim("batch")
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        exported = torch.export.export(net, (images,), dynamic_shapes=({0: batch},))
        torch.export.save(exported, file)
    return file.getvalue()
