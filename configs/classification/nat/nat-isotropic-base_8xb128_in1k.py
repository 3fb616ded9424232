# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/nat/nat-isotropic-base_8xb128_in1k.py --launcher pytorch
_base_ = "nat-mini_8xb128_in1k.py"

model = dict(backbone=dict(model_name="nat_isotropic_base", drop_path_rate=0.4))
# From epoch 50 on, of 1251 iterations each.
custom_hooks = [dict(type="ModelEmaHook", decay=0.9998, begin_iter=62_550)]
