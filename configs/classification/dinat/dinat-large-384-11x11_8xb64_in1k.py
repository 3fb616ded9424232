# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/dinat/dinat-large-384-11x11_8xb64_in1k.py --launcher pytorch
# Fine-tunes the weights of ImageNet-22k; give them by --cfg-options model.checkpoint=FILE
# Bias tables of windows of 7 x 7 are resized.
_base_ = "dinat-large-384_8xb64_in1k.py"

model = dict(backbone=dict(model_name="dinat_large_384_11x11"))
