"""The choice of the device that computes, and of the precision."""

from __future__ import annotations

import torch

from ickd_lib.runtime.errors import InputError, shown


def device(name: str | torch.device = "auto") -> torch.device:
    """Return the device to compute on. A CUDA device always has an index, so that equal devices compare as equal.

    Args:
        name: "auto" (the first GPU if there is one, else the CPU), "cpu", "cuda", "cuda:N" or a torch.device.
    Raises:
        InputError: torch does not have such a device.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise InputError(f"unknown device {shown(str(name))}; use auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda":
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise InputError(
                f"device {str(name)!r} was requested, but torch finds {torch.cuda.device_count()} CUDA GPUs; "
                "use device='cpu', or install a CUDA build of torch"
            )
        if chosen.index is None:
            return torch.device("cuda", torch.cuda.current_device())
    return chosen if chosen.type == "cuda" else torch.device("cpu")


def precision(name: str, device: torch.device, image_size: int) -> str:
    """Return the precision in which networks compute: "fp32" or "bf16".

    Args:
        name: "fp32", "bf16" or "auto". "auto" gives bf16 if the hardware has native bf16 products and the images have
            at least 16 pixels a side, otherwise fp32.
        device: the device of the networks.
        image_size: the smaller side of the images in pixels.
    Raises:
        InputError: the name is none of these.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise InputError(f"unknown precision {name!r}; use auto, fp32 or bf16")
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = any(
            getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)() for feature in ("amx_tile", "avx512_bf16")
        )
    return "bf16" if native and image_size >= 16 else "fp32"


def autocast(device: torch.device, chosen: str) -> torch.autocast:
    """Return a context in which networks compute in the precision `chosen`, "fp32" or "bf16"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=chosen == "bf16")
