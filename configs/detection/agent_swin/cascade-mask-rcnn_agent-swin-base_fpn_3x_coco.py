# python tools/train.py \
#     configs/detection/agent_swin/cascade-mask-rcnn_agent-swin-base_fpn_3x_coco.py
_base_ = "./cascade-mask-rcnn_agent-swin-tiny_fpn_3x_coco.py"

model = dict(backbone=dict(model_name="agent_swin_base", drop_path_rate=0.4))
