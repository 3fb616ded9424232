# python tools/train.py configs/classification/agent_swin/agent-swin-micro_embedded.py
_base_ = "../biformer/biformer-micro_embedded.py"

model = dict(
    backbone=dict(
        _delete_=True,
        model_name="agent_swin_tiny",
        num_classes=10,
        img_size=32,
        depths=(1, 2, 1),
        agent_depths=(1, 1, 0),
        embed_dim=32,
        head_dim=16,
        num_agents=(9, 4, 4),
        window_size=2,
        drop_path_rate=0.05,
    ),
)
