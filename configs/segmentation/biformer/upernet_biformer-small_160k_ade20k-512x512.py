# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/biformer/upernet_biformer-small_160k_ade20k-512x512.py \
#     --launcher pytorch
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/160k.py",
]
default_scope = "mmseg"

model = dict(
    backbone=dict(
        model_name="biformer_small",
        n_win=8,
        norm_outputs="layernorm2d",
        norm_eval=True,
        drop_path_rate=0.3,
    ),
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
