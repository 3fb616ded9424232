# torchrun --nproc-per-node=8 tools/train.py \
#     configs/detection/dinat/mask2former_dinat-large_100e_coco-panoptic.py \
#     --launcher pytorch
_base_ = [
    "../_base_/models/mask2former.py",
    "../_base_/datasets/coco_panoptic_lsj.py",
    "../../_base_/schedules/mask2former_160k.py",
]
default_scope = "mmdet"

param_scheduler = [
    dict(
        type="MultiStepLR",
        milestones=[655_556, 710_184],
        gamma=0.1,
        begin=0,
        end=737_500,
        by_epoch=False,
    )
]
train_cfg = dict(max_iters=737_500, dynamic_intervals=[(735_001, 2_500)])
default_hooks = dict(checkpoint=dict(save_best="coco_panoptic/PQ"))
