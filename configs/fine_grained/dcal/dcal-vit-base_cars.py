# python tools/train.py configs/fine_grained/dcal/dcal-vit-base_cars.py
_base_ = "dcal-deit-tiny_cars.py"

model = dict(
    backbone=dict(
        model_name="dcal_vit_base_patch16",
        pretrained_cfg_overlay=dict(hf_hub_id="timm/vit_base_patch16_224.orig_in21k"),
    )
)
