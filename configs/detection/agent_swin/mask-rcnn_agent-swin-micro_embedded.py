# python tools/train.py configs/detection/agent_swin/mask-rcnn_agent-swin-micro_embedded.py
_base_ = "../biformer/mask-rcnn_biformer-micro_embedded.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model_name="agent_swin_tiny",
        norm_outputs=dict(type="layernorm2d", eps=1e-5),
        img_size=160,
        depths=(1, 1, 2, 1),
        agent_depths=(1, 1, 2, 0),
        embed_dim=32,
        head_dim=16,
        num_agents=(9, 16, 16, 9),
        agent_shapes=((5, 5), (5, 5), (4, 4), (3, 3)),
        window_size=5,
    ),
)
