# python tools/train.py configs/classification/agent_cswin/agent-cswin-micro_embedded.py
_base_ = "../biformer/biformer-micro_embedded.py"

model = dict(
    backbone=dict(
        _delete_=True,
        model_name="agent_cswin_tiny",
        num_classes=10,
        img_size=32,
        depths=(1, 2, 1),
        agent_depths=(1, 0, 0),
        embed_dim=32,
        num_heads=(2, 4, 8),
        num_agents=(9, 4, 4),
        split_sizes=(1, 2, 2),
        drop_path_rate=0.05,
    ),
)
