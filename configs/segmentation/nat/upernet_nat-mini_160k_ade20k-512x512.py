# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/nat/upernet_nat-mini_160k_ade20k-512x512.py \
#     --launcher pytorch
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/160k.py",
]
default_scope = "mmseg"

model = dict(
    backbone=dict(
        model_name="nat_mini",
        norm_outputs=dict(type="layernorm2d", eps=1e-5),
        drop_path_rate=0.2,
    ),
)
optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="float16",
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0), "rpb": dict(decay_mult=0.0)}),
)
