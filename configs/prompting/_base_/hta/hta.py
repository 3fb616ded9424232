# DAM-VP's protocol. What is best is chosen on the validation set, where the authors' code takes the
# epoch that is best on the test set.
_base_ = [
    "../models/vit-base_in21k.py",
    "../datasets/short-side_224.py",
    "../schedules/adamw_100e.py",
    "../../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=0.0, prob=0.5, label_smoothing=0.1),
    drop_odd=True,
    pool_loss_weight=0.01,
)
randomness = dict(seed=3407)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best="accuracy/top1"))
