# torchrun --nproc-per-node=8 tools/train.py \
#     configs/detection/dinat/mask2former_dinat-large_100e_coco-instance.py \
#     --launcher pytorch
_base_ = [
    "../_base_/models/mask2former.py",
    "../_base_/datasets/coco_instance_lsj.py",
    "../../_base_/schedules/mask2former_160k.py",
]
default_scope = "mmdet"

model = dict(
    data_preprocessor=dict(
        pad_seg=False,
        batch_augments=[
            dict(
                type="BatchFixedSizePad",
                size=(1024, 1024),
                img_pad_value=0,
                pad_mask=True,
                mask_pad_value=0,
                pad_seg=False,
            )
        ],
    ),
    panoptic_head=dict(
        num_things_classes=80,
        num_stuff_classes=0,
        loss_cls=dict(class_weight=[1.0] * 80 + [0.1]),
    ),
    panoptic_fusion_head=dict(num_things_classes=80, num_stuff_classes=0),
    test_cfg=dict(panoptic_on=False),
)
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
default_hooks = dict(checkpoint=dict(save_best="coco/segm_mAP"))
