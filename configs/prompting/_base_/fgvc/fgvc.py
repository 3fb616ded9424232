# VPT's protocol for fine-grained classes.
_base_ = [
    "../models/vit-base_in21k.py",
    "../datasets/short-side_224.py",
    "../schedules/sgd_100e.py",
    "../../../_base_/default_runtime.py",
]
default_scope = "visattn"

train_dataloader = dict(batch_size=64)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best="accuracy/top1"))
