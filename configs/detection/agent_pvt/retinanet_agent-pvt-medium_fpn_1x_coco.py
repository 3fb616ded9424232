# python tools/train.py configs/detection/agent_pvt/retinanet_agent-pvt-medium_fpn_1x_coco.py
_base_ = "./retinanet_agent-pvt-tiny_fpn_1x_coco.py"

model = dict(backbone=dict(model_name="agent_pvt_medium", drop_path_rate=0.2))
