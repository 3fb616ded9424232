# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/dinat/dinat-s-large-384_8xb64_in1k.py --launcher pytorch
# Fine-tunes the weights of ImageNet-22k; give them by --cfg-options model.checkpoint=FILE
_base_ = "dinat-large-384_8xb64_in1k.py"

model = dict(backbone=dict(model_name="dinat_s_large_384"))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-5))
