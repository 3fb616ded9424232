# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/dinat/mask2former_dinat-large_90k_cityscapes-512x1024.py \
#     --launcher pytorch
_base_ = [
    "../_base_/models/mask2former.py",
    "../_base_/datasets/cityscapes.py",
    "../../_base_/schedules/mask2former_160k.py",
]
default_scope = "mmseg"

num_classes = 19
model = dict(
    data_preprocessor=dict(size=(512, 1024)),
    decode_head=dict(
        num_classes=num_classes, loss_cls=dict(class_weight=[1.0] * num_classes + [0.1])
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(
        type="RandomChoiceResize",
        scales=[int(1024 * 0.1 * x) for x in range(5, 21)],
        resize_type="ResizeShortestEdge",
        max_size=4096,
    ),
    dict(type="RandomCrop", crop_size=(512, 1024)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
default_hooks = dict(checkpoint=dict(save_best="mIoU"))

param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=90_000, by_epoch=False)]
train_cfg = dict(max_iters=90_000)
