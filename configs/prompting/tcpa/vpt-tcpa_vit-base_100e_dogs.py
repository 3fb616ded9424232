# python tools/train.py configs/prompting/tcpa/vpt-tcpa_vit-base_100e_dogs.py
_base_ = "../_base_/hta/dogs.py"

model = dict(prompts=dict(type="tcpa", host="vpt_deep", pool_size=16))
