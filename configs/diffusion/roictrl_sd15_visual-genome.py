# torchrun --nproc-per-node 8 tools/train.py configs/diffusion/roictrl_sd15_visual-genome.py \
#     --launcher pytorch
_base_ = [
    "_base_/models/sd15_roictrl.py",
    "_base_/datasets/loader.py",
    "_base_/schedule_roictrl.py",
]
default_scope = "visattn"

train_dataloader = dict(
    dataset=dict(
        type="VisualGenome",
        data_root="data/visual_genome/",
        ann_file="region_descriptions.json",
        image_file="image_data.json",
    )
)
