# python tools/train.py configs/reid/dcal/dcal-vit-base-sa-test_veri776.py
_base_ = "dcal-vit-base_veri776.py"

model = dict(use_glca=False)
