# torchrun --nproc-per-node=2 tools/train.py \
#     configs/classification/ela/elamobilenetv2-100-b_2xb128_in1k.py --launcher pytorch
# The published script decays its rate from 0.1 to 0.01 and weights by 1e-4 unless told otherwise;
# this is the schedule of coordinate attention, with which the networks compared were trained. Which
# of the two the paper's figures are of is not known.
_base_ = [
    "../_base_/datasets/imagenet_224_plain.py",
    "../_base_/schedules/sgd_200e.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="ImageClassifier",
    backbone=dict(model_name="elamobilenetv2_100_b", num_classes=1000, drop_rate=0.1),
)
randomness = dict(seed=42)
default_hooks = dict(checkpoint=dict(save_best="accuracy/top1"))
