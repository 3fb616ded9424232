# python tools/train.py configs/classification/agent_deit/agent-deit-micro_embedded.py
_base_ = "../biformer/biformer-micro_embedded.py"

model = dict(
    backbone=dict(
        _delete_=True,
        model_name="agent_deit_tiny",
        num_classes=10,
        img_size=32,
        patch_size=4,
        depth=4,
        embed_dim=64,
        head_dim=16,
        num_agents=16,
        drop_path_rate=0.05,
    ),
)
