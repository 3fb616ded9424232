# torchrun --nproc-per-node=8 tools/train.py \
#     configs/probing/mae/mae-vit-base_ep-grid_8xb512_in1k.py --launcher pytorch
# Efficient Probing from one query to 64, and with values narrowed up to 16 times.
_base_ = "mae-vit-base_linear-ep32_8xb512_in1k.py"

model = dict(
    heads=dict(
        _delete_=True,
        **{
            f"ep{queries}": dict(pooling="ep", num_queries=queries)
            for queries in (1, 2, 4, 8, 12, 16, 32, 48, 64)
        },
        **{
            f"ep{queries}_d{d_out}": dict(pooling="ep", num_queries=queries, d_out=d_out)
            for queries, d_out in ((32, 2), (32, 4), (12, 8), (32, 8), (48, 8), (12, 16), (48, 16))
        },
    ),
)
