# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/nat/nat-mini_8xb128_in1k.py --launcher pytorch
_base_ = [
    "../_base_/datasets/imagenet_224.py",
    "../_base_/schedules/adamw_310e.py",
    "../_base_/augmentation/mixup_cutmix.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="ImageClassifier",
    backbone=dict(model_name="nat_mini", num_classes=1000, drop_path_rate=0.2),
)
train_dataloader = dict(sampler=dict(_delete_=True, type="DefaultSampler", shuffle=True))
default_hooks = dict(checkpoint=dict(save_best="accuracy/top1"))
