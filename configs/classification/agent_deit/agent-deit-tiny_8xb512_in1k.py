# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_deit/agent-deit-tiny_8xb512_in1k.py --launcher pytorch
_base_ = [
    "../_base_/datasets/imagenet_224_squash.py",
    "../_base_/schedules/adamw_300e_float32.py",
    "../_base_/augmentation/mixup_cutmix.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="ImageClassifier",
    backbone=dict(model_name="agent_deit_tiny", num_classes=1000, drop_path_rate=0.0),
)
train_dataloader = dict(batch_size=512)
# For 8 GPUs, whose number is not published.
optim_wrapper = dict(optimizer=dict(lr=4e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = dict(warmup_lr=4e-6, min_lr=4e-5)
default_hooks = dict(checkpoint=dict(save_best="accuracy/top1"))
