# python tools/train.py configs/detection/agent_pvt/mask-rcnn_agent-pvt-micro_embedded.py
_base_ = "../biformer/mask-rcnn_biformer-micro_embedded.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model_name="agent_pvt_tiny",
        img_size=160,
        depths=(1, 1, 2, 1),
        embed_dims=(32, 64, 128, 256),
        head_dim=32,
        mlp_ratios=(4, 4, 4, 4),
        num_agents=(9, 16, 16, 9),
        agent_shapes=((5, 5), (5, 5), (4, 4), (3, 3)),
    ),
)
