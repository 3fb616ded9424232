# python tools/train.py configs/prompting/embedded/vpt-deep_vit-micro-glyphs_embedded.py
_base_ = "../_base_/embedded/glyphs.py"

model = dict(prompts=dict(type="vpt_deep", length=10))
