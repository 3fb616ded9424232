# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/dinat/dinat-isotropic-small_8xb128_in1k.py --launcher pytorch
_base_ = "../nat/nat-mini_8xb128_in1k.py"

model = dict(backbone=dict(model_name="dinat_isotropic_small", drop_path_rate=0.1))
