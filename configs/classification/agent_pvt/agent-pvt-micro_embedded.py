# python tools/train.py configs/classification/agent_pvt/agent-pvt-micro_embedded.py
_base_ = "../biformer/biformer-micro_embedded.py"

model = dict(
    backbone=dict(
        _delete_=True,
        model_name="agent_pvt_tiny",
        num_classes=10,
        img_size=32,
        depths=(1, 2, 1),
        embed_dims=(32, 64, 128),
        head_dim=16,
        mlp_ratios=(4, 4, 4),
        num_agents=(9, 4, 4),
        sr_ratios=(1, 1, 1),
        agent_sr_ratios=(1, 1, 1),
        drop_path_rate=0.05,
    ),
)
