# torchrun --nproc-per-node=2 tools/train.py \
#     configs/classification/ela/elaresnet18-b_2xb128_in1k.py --launcher pytorch
# Neither the place of the layer in classification nor this schedule was published: the place is
# that of the released segmentation network, the schedule ResNet's usual one.
_base_ = [
    "../_base_/datasets/imagenet_224_plain.py",
    "../_base_/schedules/sgd_100e.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="ImageClassifier",
    backbone=dict(model_name="elaresnet18_b", num_classes=1000),
)
default_hooks = dict(checkpoint=dict(save_best="accuracy/top1"))
