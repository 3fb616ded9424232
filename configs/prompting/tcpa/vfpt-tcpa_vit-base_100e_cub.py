# python tools/train.py configs/prompting/tcpa/vfpt-tcpa_vit-base_100e_cub.py
_base_ = "../_base_/hta/cub.py"

model = dict(prompts=dict(type="tcpa", host="vfpt", iprompt=True))
