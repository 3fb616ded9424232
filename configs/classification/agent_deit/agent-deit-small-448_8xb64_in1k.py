# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_deit/agent-deit-small-448_8xb64_in1k.py --launcher pytorch
_base_ = "agent-deit-tiny_8xb512_in1k.py"

model = dict(backbone=dict(model_name="agent_deit_small_448", drop_path_rate=0.1))
train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        pipeline=[
            dict(
                type="TimmTrainTransform",
                img_size=448,
                color_jitter=0.4,
                auto_augment="rand-m9-mstd0.5-inc1",
                interpolation="bicubic",
            )
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(
                type="TimmEvalTransform",
                img_size=448,
                crop_pct=0.875,
                crop_mode="squash",
                interpolation="bicubic",
            )
        ],
    ),
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = dict(warmup_lr=5e-7, min_lr=5e-6)
