"""The state dicts that authors saved of their detectors and segmentors, made from those of ours."""

import re

import torch


def stage_ends(container):
    """Downsampling ends an official stage, and begins one of ours."""
    return (
        r"^stages\.(\d)\.downsample",
        lambda match: f"{container}.{int(match[1]) - 1}.downsample",
    )


# From our keys to those that the authors' networks have, by the tables of their papers' code.
KEYS = {
    "biformer": [
        (r"^stem\.conv1\.", "downsample_layers.0.0."),
        (r"^stem\.norm1\.", "downsample_layers.0.1."),
        (r"^stem\.conv2\.", "downsample_layers.0.3."),
        (r"^stem\.norm2\.", "downsample_layers.0.4."),
        (r"^stages\.(\d)\.downsample\.conv\.", r"downsample_layers.\1.0."),
        (r"^stages\.(\d)\.downsample\.norm\.", r"downsample_layers.\1.1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"^stages\.([012])(\.\d+)\.attn\.qkv\.", r"stages.\1\2.attn.qkv.qkv."),
        (r"^stages\.([012])(\.\d+)\.attn\.proj\.", r"stages.\1\2.attn.wo."),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
        (r"^norms\.", "extra_norms."),
    ],
    "nat": [
        (r"^stem\.conv([12])\.", lambda match: f"patch_embed.proj.{int(match[1]) - 1}."),
        (r"^stem\.norm\.", "patch_embed.norm."),
        stage_ends("levels"),
        (r"^stages\.", "levels."),
        (r"\.ls([12])\.gamma$", r".gamma\1"),
        (r"^norms\.(\d)", r"norm\1"),
    ],
    "dinat_s": [
        (r"^stem\.conv\.", "patch_embed.proj."),
        (r"^stem\.norm\.", "patch_embed.norm."),
        stage_ends("layers"),
        (r"^stages\.", "layers."),
        (r"^norms\.(\d)", r"norm\1"),
    ],
    "agent_swin": [
        (r"^stem\.conv\.", "patch_embed.proj."),
        (r"^stem\.norm\.", "patch_embed.norm."),
        stage_ends("layers"),
        (r"^stages\.", "layers."),
        (r"\.rpb$", ".relative_position_bias_table"),
        (r"^norms\.(\d)", r"norm\1"),
    ],
    "agent_pvt": [
        (r"^stem\.pos_embed$", "pos_embed1"),
        (r"^stem\.", "patch_embed1."),
        (
            r"^stages\.(\d)\.downsample\.pos_embed$",
            lambda match: f"pos_embed{int(match[1]) + 1}",
        ),
        (
            r"^stages\.(\d)\.downsample\.",
            lambda match: f"patch_embed{int(match[1]) + 1}.",
        ),
        (r"^stages\.(\d)\.blocks\.", lambda match: f"block{int(match[1]) + 1}."),
    ],
}
AGENT_BIASES = {
    "key_bias.block": ("an_bias", lambda x: x),
    "key_bias.rows": ("ah_bias", lambda x: x[None, ..., None]),
    "key_bias.columns": ("aw_bias", lambda x: x[None, :, :, None]),
    "query_bias.block": ("na_bias", lambda x: x),
    "query_bias.rows": ("ha_bias", lambda x: x.mT[None, :, :, None]),
    "query_bias.columns": ("wa_bias", lambda x: x.mT[None, :, None]),
}


def official_values(key, value):
    """What the authors store in place of an entry of ours: pairs of (key, value)."""
    path, _, leaf = key.partition(".attn.")
    if leaf in AGENT_BIASES:
        name, lay_out = AGENT_BIASES[leaf]
        return [(f"{path}.attn.{name}", lay_out(value))]
    if key.endswith(".relative_position_bias_table"):
        # Theirs: a row an offset, from key to query. The index and the mask are buffers.
        table = value.flip(1, 2).flatten(1).T
        return [
            (key, table),
            (f"{path}.attn.relative_position_index", torch.zeros(49, 49).long()),
            (f"{path}.attn_mask", torch.zeros(4, 49, 49)),
        ]
    if key.startswith("block") and ".attn.qkv." in key:
        q, k, v = value.chunk(3)
        return [(key.replace("qkv", "q"), q), (key.replace("qkv", "kv"), torch.cat([k, v]))]
    if key.startswith("pos_embed"):
        return [(key, value.flatten(1, 2))]
    return [(key, value)]


def official_state_dict(model, family):
    """The state dict of a detector or segmentor of ours, as its authors would have saved it."""
    theirs = {}
    for key, value in model.state_dict().items():
        bare = re.sub(r"^backbone\.(model\.model\.)?", "", key)
        if bare == key:
            theirs[key] = value
            continue
        for pattern, replacement in KEYS[family]:
            bare = re.sub(pattern, replacement, bare)
        theirs |= {f"backbone.{name}": part for name, part in official_values(bare, value)}
    return theirs
