# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/biformer/upernet_biformer-small_80k_cityscapes-512x1024.py \
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
        model_name="biformer_small",
        n_win=8,
        norm_outputs="layernorm2d",
        norm_eval=True,
        drop_path_rate=0.3,
    ),
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
)
optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="float16",
    loss_scale=dict(init_scale=512.0),
    paramwise_cfg=dict(
        custom_keys={
            "norm": dict(decay_mult=0.0),
            # The batch norms between the stages have no norm in the authors' names, and decay.
            "stem.norm1": dict(decay_mult=1.0),
            "stem.norm2": dict(decay_mult=1.0),
            "downsample.norm": dict(decay_mult=1.0),
        }
    ),
)
