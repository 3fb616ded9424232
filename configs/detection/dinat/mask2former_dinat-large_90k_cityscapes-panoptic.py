# torchrun --nproc-per-node=8 tools/train.py \
#     configs/detection/dinat/mask2former_dinat-large_90k_cityscapes-panoptic.py \
#     --launcher pytorch
_base_ = [
    "../_base_/models/mask2former.py",
    "../_base_/datasets/cityscapes_panoptic.py",
    "../../_base_/schedules/mask2former_160k.py",
]
default_scope = "mmdet"

model = dict(
    data_preprocessor=dict(batch_augments=None),
    panoptic_head=dict(
        num_things_classes=8,
        num_stuff_classes=11,
        loss_cls=dict(class_weight=[1.0] * 19 + [0.1]),
    ),
    panoptic_fusion_head=dict(num_things_classes=8, num_stuff_classes=11),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=90_000, by_epoch=False)]
train_cfg = dict(max_iters=90_000)
default_hooks = dict(checkpoint=dict(save_best="coco_panoptic/PQ"))
