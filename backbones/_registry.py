"""Registration with timm that never takes over a name."""

from collections.abc import Callable

from timm.models import is_model, list_modules
from timm.models import register_model as timm_register_model
from torch import nn

_modules: set[str] = set()


def register_model(fn: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Registers a model entry point with timm under the name of the function.

    Raises:
        ValueError: If timm or visattn already has a model of that name, or timm a module of the
            file's name, whose model lists would merge with ours.
    """
    module = fn.__module__.rpartition(".")[2]
    if is_model(fn.__name__):
        raise ValueError(
            f"a model named {fn.__name__!r} is already registered with timm; "
            f"rename the entry point in {fn.__module__}"
        )
    if fn.__module__ not in _modules and module in list_modules():
        raise ValueError(
            f"timm already has a module {module!r}; rename {fn.__module__} so that "
            f"`timm.list_models(module={module!r})` does not mix two families"
        )
    _modules.add(fn.__module__)
    return timm_register_model(fn)
