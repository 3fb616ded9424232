# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/biformer/biformer-tiny_8xb128_in1k.py --launcher pytorch
_base_ = [
    "../_base_/datasets/imagenet_224.py",
    "../_base_/schedules/adamw_300e.py",
    "../_base_/augmentation/mixup_cutmix.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="ImageClassifier",
    backbone=dict(model_name="biformer_tiny", num_classes=1000, drop_path_rate=0.1),
)
default_hooks = dict(checkpoint=dict(save_best="accuracy/top1"))
# The published accuracies are those of the raw weights, not of their average.
custom_hooks = [dict(type="ModelEmaHook", decay=0.99996, evaluate="raw")]
