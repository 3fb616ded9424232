"""Poolings of tokens (B, N, D) to a vector, by name, as probes of frozen features use them.

From Efficient Probing (arXiv 2506.10178): its own, all that it compares with, under the names,
parameters and defaults of the released code, and some that average.
"""

import difflib
from typing import Any

from .averaged import CLIPPooling, SimPool, SimPoolNoLinears
from .base import Pooling, QueryPooling, Scores
from .efficient import EfficientProbing
from .latent import (
    AIMPooling,
    CAEPooling,
    CaiTPooling,
    CoCaPooling,
    JEPAPooling,
    SigLIPPooling,
)
from .scored import AbMILPPooling, CBAMPooling, DinoViTPooling, DOLGPooling
from .statistics import (
    ClassToken,
    GeneralizedMeanPooling,
    GlobalAveragePooling,
    LogSumExpPooling,
)

__all__ = [
    "POOLINGS",
    "AIMPooling",
    "AbMILPPooling",
    "CAEPooling",
    "CBAMPooling",
    "CLIPPooling",
    "CaiTPooling",
    "ClassToken",
    "CoCaPooling",
    "DOLGPooling",
    "DinoViTPooling",
    "EfficientProbing",
    "GeneralizedMeanPooling",
    "GlobalAveragePooling",
    "JEPAPooling",
    "LogSumExpPooling",
    "Pooling",
    "QueryPooling",
    "Scores",
    "SigLIPPooling",
    "SimPool",
    "SimPoolNoLinears",
    "create_pooling",
    "list_poolings",
    "split_name",
]

POOLINGS: dict[str, type[Pooling]] = {
    "ep": EfficientProbing,
    "abmilp": AbMILPPooling,
    "simpool": SimPool,
    "esimpool": SimPoolNoLinears,
    "clip": CLIPPooling,
    "siglip": SigLIPPooling,
    "aim": AIMPooling,
    "cbam": CBAMPooling,
    "coca": CoCaPooling,
    "cait": CaiTPooling,
    "dinovit": DinoViTPooling,
    "jepa": JEPAPooling,
    "dolg": DOLGPooling,
    "cae": CAEPooling,
    "lse": LogSumExpPooling,
    "gem": GeneralizedMeanPooling,
    "gap": GlobalAveragePooling,
    "cls": ClassToken,
}
"""Poolings by name."""

_ALIASES = {"pos": "gap"}
_ON_A_GRID = ("clip", "cbam")
"""Those whose patches have places, among which the class token has none."""


def list_poolings() -> list[str]:
    """The names of all poolings; each but ``cls``, ``clip`` and ``cbam`` also with ``_all``."""
    return list(POOLINGS)


def split_name(name: str) -> tuple[str, str]:
    """The pooling that a name means, and the tokens that it is given.

    Args:
        name: A pooling of ``list_poolings()``, which gets the patches; with ``_all`` appended it
            gets the class token and the patches. ``"pos"`` means ``"gap"``.

    Returns:
        Name of the pooling, and ``"patch"``, ``"all"`` or ``"cls"``.

    Raises:
        ValueError: If there is no such pooling, or it cannot take the class token.
    """
    bare = name.removesuffix("_all")
    bare = _ALIASES.get(bare, bare)
    if bare not in POOLINGS:
        near = difflib.get_close_matches(bare, [*POOLINGS, *_ALIASES], 3)
        hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"unknown pooling {name!r}{hint}; there are {', '.join(POOLINGS)}")
    if bare == "cls":
        if name != bare:
            raise ValueError("'cls' is the class token alone, and has no '_all'")
        return bare, "cls"
    if name.endswith("_all") and bare in _ON_A_GRID:
        raise ValueError(f"{bare!r} pools a grid of patches, in which the class token has no place")
    return bare, "all" if name.endswith("_all") else "patch"


def create_pooling(name: str, dim: int, **kwargs: Any) -> Pooling:
    """Builds a pooling of tokens (B, N, dim).

    Args:
        name: See ``split_name``; which tokens it is given is up to the caller.
        dim: Width of the tokens.
        **kwargs: Options of the pooling, such as ``num_queries`` of ``"ep"``.

    Raises:
        ValueError: If there is no such pooling, or the options do not fit the width.
    """
    return POOLINGS[split_name(name)[0]](dim, **kwargs)
