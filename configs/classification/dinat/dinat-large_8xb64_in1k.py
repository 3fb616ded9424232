# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/dinat/dinat-large_8xb64_in1k.py --launcher pytorch
# Fine-tunes the weights of ImageNet-22k; give them by --cfg-options model.checkpoint=FILE
# That its line ends at a rate of 0 is an assumption.
_base_ = [
    "../_base_/datasets/imagenet_224.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="ImageClassifier",
    backbone=dict(model_name="dinat_large", num_classes=1000, drop_path_rate=0.35),
    checkpoint_ignore=["head."],
    loss=dict(type="LabelSmoothingCrossEntropy", smoothing=0.1),
    data_preprocessor=dict(random_erasing=dict(probability=0.25, mode="pixel", max_count=1)),
)
train_dataloader = dict(
    batch_size=64,
    sampler=dict(_delete_=True, type="DefaultSampler", shuffle=True),
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=5e-5, weight_decay=1e-4, eps=1e-8),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = dict(
    type="LinearLR", start_factor=1.0, end_factor=0.0, end=30, convert_to_iter_based=True
)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=30)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(save_best="accuracy/top1"))
