# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/nat/upernet_nat-mini_80k_cityscapes-512x1024.py \
#     --launcher pytorch
# Not in the paper: its recipe for ADE20K with the schedule that is usual on Cityscapes.
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/cityscapes.py",
    "../_base_/schedules/80k.py",
]
default_scope = "mmseg"

model = dict(
    data_preprocessor=dict(size=(512, 1024)),
    backbone=dict(
        model_name="nat_mini",
        norm_outputs=dict(type="layernorm2d", eps=1e-5),
        drop_path_rate=0.2,
    ),
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
)
optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="float16",
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0), "rpb": dict(decay_mult=0.0)}),
)
