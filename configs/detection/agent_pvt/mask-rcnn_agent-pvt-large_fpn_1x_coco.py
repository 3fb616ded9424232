# python tools/train.py configs/detection/agent_pvt/mask-rcnn_agent-pvt-large_fpn_1x_coco.py
_base_ = "./mask-rcnn_agent-pvt-tiny_fpn_1x_coco.py"

model = dict(backbone=dict(model_name="agent_pvt_large", drop_path_rate=0.2))
