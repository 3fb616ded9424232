# Digits that lie on their side in noise, for an encoder that has only seen them upright and clean:
#     python tools/train.py configs/classification/vit/vit-micro_embedded.py
_base_ = "glyphs.py"

_pipeline = [
    dict(
        type="AlbumentationsTransform",
        transforms=[
            dict(type="Resize", height=64, width=64, interpolation=2),
            dict(
                type="Affine", scale=(0.6, 0.9), translate_percent=(-0.15, 0.15), rotate=(75, 105)
            ),
            dict(type="GaussNoise", std_range=(0.05, 0.15), p=1.0),
        ],
    )
]
train_dataloader = dict(
    dataset=dict(data_root="data/embedded/digits/train", pipeline=_pipeline),
)
val_dataloader = dict(dataset=dict(data_root="data/embedded/digits/val", pipeline=_pipeline))
test_dataloader = val_dataloader
param_scheduler = dict(T_max=2, warmup=0.25)
train_cfg = dict(max_epochs=2, val_interval=2)
