# python tools/train.py configs/classification/dcal/dcal-micro_embedded.py
_base_ = "../biformer/biformer-micro_embedded.py"

model = dict(
    backbone=dict(
        _delete_=True,
        model_name="dcal_deit_tiny_patch16",
        num_classes=10,
        img_size=32,
        patch_size=8,
        depth=4,
        embed_dim=144,
        num_heads=3,
        glca_ratio=0.3,
        drop_path_rate=0.05,
    ),
    loss=dict(_delete_=True, type="DualCrossAttentionLoss", label_smoothing=0.1),
)
train_dataloader = dict(batch_size=32)
param_scheduler = dict(T_max=40)
train_cfg = dict(max_epochs=40, val_interval=4)
