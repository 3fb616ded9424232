# torchrun --nproc-per-node=8 tools/train.py \
#     configs/probing/mae/mae-vit-base_poolings_8xb512_in1k.py --launcher pytorch
# All poolings that the paper compares, side by side.
_base_ = "mae-vit-base_linear-ep32_8xb512_in1k.py"

model = dict(
    heads=dict(
        _delete_=True,
        linear=dict(pooling="cls"),
        gap=dict(),
        ep12=dict(pooling="ep", num_queries=12),
        ep64=dict(pooling="ep", num_queries=64),
        abmilp=dict(),
        simpool=dict(),
        esimpool=dict(),
        clip=dict(),
        siglip=dict(),
        aim12=dict(pooling="aim", num_heads=12),
        cbam=dict(),
        coca=dict(),
        cait=dict(),
        dinovit=dict(),
        jepa=dict(num_heads=12),
        dolg=dict(),
        cae=dict(),
    ),
)
