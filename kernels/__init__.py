"""Maths on tensors: one folder an op; nothing here knows a model."""

# Python that is run in the repository finds this folder under the name of another package, too, for
# which `transformers` looks: under that name it is empty, so that operators are registered once.
if __name__ == "visattn.kernels":
    from . import _forks  # noqa: F401  hears of forks from now on
    from ._packing import unpack
    from .agent_attention import AgentBias, agent_attention
    from .bilevel_routing_attention import bilevel_routing_attention, route_regions
    from .depthwise_conv import depthwise_conv
    from .dispatch import use_impl
    from .efficient_local_attention import efficient_local_attention
    from .multi_query_pool import multi_query_pool, query_attention
    from .neighborhood_attention import neighborhood_attention
    from .roi_align import roi_align
    from .roi_unpool import roi_unpool
    from .window_attention import window_attention

__all__ = [
    "AgentBias",
    "agent_attention",
    "bilevel_routing_attention",
    "depthwise_conv",
    "efficient_local_attention",
    "multi_query_pool",
    "neighborhood_attention",
    "query_attention",
    "roi_align",
    "roi_unpool",
    "route_regions",
    "unpack",
    "use_impl",
    "window_attention",
]
