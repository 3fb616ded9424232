# Loaders and measure, and what follows the resizing of test-time augmentation.
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

tta_model = dict(type="SegTTAModel")
tta_ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
tta_views = [
    [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
    [dict(type="LoadAnnotations")],
    [dict(type="PackSegInputs")],
]
