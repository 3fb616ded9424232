# python tools/train.py configs/prompting/tcpa/vfpt-tcpa_vit-base_100e_dogs.py
_base_ = "../_base_/hta/dogs.py"

model = dict(prompts=dict(type="tcpa", host="vfpt", pool_size=16))
