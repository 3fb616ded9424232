"""Maths on tensors: one folder an op; nothing here knows a model."""

from .bilevel_routing_attention import bilevel_routing_attention, route_regions

__all__ = ["bilevel_routing_attention", "route_regions"]
