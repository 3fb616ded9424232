# python tools/train.py configs/prompting/embedded/vpt-tcpa_vit-micro_embedded.py
_base_ = "../_base_/embedded/turned_digits.py"

model = dict(prompts=dict(type="tcpa", host="vpt_deep", random_epoch=0))
