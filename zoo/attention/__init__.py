"""What the attention of a model looks at, as data and as drawings."""

from .drawing import describe_layer, draw_heat, draw_routing, plot_attention
from .maps import (
    AgentMap,
    AttentionMap,
    GateMap,
    LayerMap,
    RolloutMap,
    RoutingMap,
    attention_layers,
    attention_maps,
    last_of_stages,
)

__all__ = [
    "AgentMap",
    "AttentionMap",
    "GateMap",
    "LayerMap",
    "RolloutMap",
    "RoutingMap",
    "attention_layers",
    "attention_maps",
    "describe_layer",
    "draw_heat",
    "draw_routing",
    "last_of_stages",
    "plot_attention",
]
