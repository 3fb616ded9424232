# torchrun --nproc-per-node=8 tools/train.py \
#     configs/detection/dinat/mask2former_dinat-large_160k_ade20k-instance.py \
#     --launcher pytorch
_base_ = [
    "../_base_/models/mask2former.py",
    "../_base_/datasets/ade20k_instance.py",
    "../../_base_/schedules/mask2former_160k.py",
]
default_scope = "mmdet"

model = dict(
    data_preprocessor=dict(
        pad_seg=False,
        batch_augments=[
            dict(
                type="BatchFixedSizePad",
                size=(640, 640),
                img_pad_value=0,
                pad_mask=True,
                mask_pad_value=0,
                pad_seg=False,
            )
        ],
    ),
    panoptic_head=dict(
        num_things_classes=100,
        num_stuff_classes=0,
        loss_cls=dict(class_weight=[1.0] * 100 + [0.1]),
    ),
    panoptic_fusion_head=dict(num_things_classes=100, num_stuff_classes=0),
    test_cfg=dict(panoptic_on=False),
)
default_hooks = dict(checkpoint=dict(save_best="coco/segm_mAP"))
