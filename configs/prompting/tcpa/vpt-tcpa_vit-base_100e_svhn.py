# python tools/train.py configs/prompting/tcpa/vpt-tcpa_vit-base_100e_svhn.py
_base_ = "../_base_/hta/svhn.py"

model = dict(prompts=dict(type="tcpa", host="vpt_deep"))
