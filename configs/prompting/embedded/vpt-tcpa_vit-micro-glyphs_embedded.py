# python tools/train.py configs/prompting/embedded/vpt-tcpa_vit-micro-glyphs_embedded.py
_base_ = "../_base_/embedded/glyphs.py"

model = dict(prompts=dict(type="tcpa", host="vpt_deep", random_epoch=2))
