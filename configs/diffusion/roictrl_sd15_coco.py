# torchrun --nproc-per-node 8 tools/train.py configs/diffusion/roictrl_sd15_coco.py \
#     --launcher pytorch
_base_ = [
    "_base_/models/sd15_roictrl.py",
    "_base_/datasets/loader.py",
    "_base_/schedule_roictrl.py",
]
default_scope = "visattn"

train_dataloader = dict(
    dataset=dict(
        type="CocoCaptions",
        data_root="data/coco/",
        ann_file="annotations/instances_train2017.json",
        caption_file="annotations/captions_train2017.json",
        data_prefix=dict(img="train2017/"),
    )
)
