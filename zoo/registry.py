"""Registration with mmengine.

Everything of ours is registered in mmengine's root registries, where every scope finds it. The
scope ``visattn`` has its own, empty registries below them.
"""

import sys
from functools import cache

from mmengine.registry import root
from mmengine.registry.registry import Registry

from .errors import ConfigError

SCOPES = ("visattn", "mmdet", "mmseg")

# mmengine imports the registries of a scope under this name, and warns if there is no such module.
sys.modules["visattn.registry"] = sys.modules[__name__]

for _registry in [value for value in vars(root).values() if isinstance(value, Registry)]:
    if "visattn" not in _registry.children:
        Registry(_registry.name, parent=_registry, scope="visattn")


@cache
def register_all(scope: str = "visattn") -> None:
    """Imports everything that configurations of a scope may name.

    Args:
        scope: The configuration's ``default_scope``: ``"visattn"``, ``"mmdet"`` or ``"mmseg"``. For
            the last two, mmcv's missing compiled operators are put in place first.

    Raises:
        ConfigError: If the scope is none of these.
    """
    from .. import backbones  # noqa: F401
    from .data import (  # noqa: F401
        classification,
        fine_grained,
        hta,
        reid,
        samplers,
        transforms,
        vtab,
    )
    from .diffusion import cache, cards  # noqa: F401
    from .diffusion import data as diffusion_data  # noqa: F401
    from .diffusion import hooks as diffusion_hooks  # noqa: F401
    from .diffusion import model as diffusion_model  # noqa: F401
    from .probing import data as probe_data  # noqa: F401
    from .probing import metrics as probe_metrics  # noqa: F401
    from .probing import optim as probe_optim  # noqa: F401
    from .reid import evaluation, losses, model  # noqa: F401
    from .training import (  # noqa: F401
        checkpointing,
        classifier,
        ema,
        loops,
        metrics,
        optim,
        prompting,
        runner,
        schedulers,
    )

    if scope in ("mmdet", "mmseg"):
        _register_openmm(scope)
    elif scope not in (*SCOPES, "mmengine"):
        raise ConfigError(
            f"default_scope {scope!r} is unknown: it is one of {', '.join(map(repr, SCOPES))}"
        )


def _register_openmm(scope: str) -> None:
    from .openmm import backbone, confusion, mmcv_ops, panopticapi  # noqa: F401

    mmcv_ops.install()
    panopticapi.install()
    from ..heads import plugins  # noqa: F401

    if scope == "mmdet":
        from mmdet.utils import register_all_modules

        from ..heads import ela  # noqa: F401
        from .openmm import cityscapes, mixing, tta  # noqa: F401
    else:
        from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=False)
