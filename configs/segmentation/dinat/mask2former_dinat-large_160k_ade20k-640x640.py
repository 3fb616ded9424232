# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/dinat/mask2former_dinat-large_160k_ade20k-640x640.py \
#     --launcher pytorch
_base_ = [
    "../_base_/models/mask2former.py",
    "../_base_/datasets/ade20k_640x640.py",
    "../../_base_/schedules/mask2former_160k.py",
]
default_scope = "mmseg"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(
        type="RandomChoiceResize",
        scales=[int(640 * 0.1 * x) for x in range(5, 21)],
        resize_type="ResizeShortestEdge",
        max_size=2560,
    ),
    dict(type="RandomCrop", crop_size=(640, 640)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
default_hooks = dict(checkpoint=dict(save_best="mIoU"))
