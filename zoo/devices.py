"""Where models run."""

import torch

from .errors import UserError


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """A device by name; by default the accelerator, if there is one, or the CPU.

    Raises:
        UserError: If it cannot be used.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cause = str(error).splitlines()[0]
        raise UserError(f"device {name} cannot be used here: {cause}") from error
    return device
