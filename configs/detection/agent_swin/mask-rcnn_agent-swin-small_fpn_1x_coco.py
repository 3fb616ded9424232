# python tools/train.py configs/detection/agent_swin/mask-rcnn_agent-swin-small_fpn_1x_coco.py
_base_ = "./mask-rcnn_agent-swin-tiny_fpn_1x_coco.py"

model = dict(backbone=dict(model_name="agent_swin_small"))
