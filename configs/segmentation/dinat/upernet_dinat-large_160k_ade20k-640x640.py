# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/dinat/upernet_dinat-large_160k_ade20k-640x640.py \
#     --launcher pytorch
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_640x640.py",
    "../_base_/schedules/160k.py",
]
default_scope = "mmseg"

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        model_name="dinat_large_21k",
        norm_outputs=dict(type="layernorm2d", eps=1e-5),
        drop_path_rate=0.3,
        dilations=(
            (1, 20, 1),
            (1, 5, 1, 10),
            (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5),
            (1, 2, 1, 2, 1),
        ),
    ),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0), "rpb": dict(decay_mult=0.0)}),
)
