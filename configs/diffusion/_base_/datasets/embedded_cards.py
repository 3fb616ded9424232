# Cards with one or two digits; those to validate on show other scans, elsewhere.
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="collate_records"),
    dataset=dict(
        type="CocoCaptions",
        data_root="data/embedded/cards/",
        ann_file="annotations/instances_train2017.json",
        caption_file="annotations/captions_train2017.json",
        data_prefix=dict(img="train2017/"),
        size=16,
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="collate_records"),
    dataset=dict(
        type="CocoCaptions",
        data_root="data/embedded/cards/",
        ann_file="annotations/instances_val2017.json",
        caption_file="annotations/captions_val2017.json",
        data_prefix=dict(img="val2017/"),
        size=16,
        training=False,
    ),
)
test_dataloader = val_dataloader
# Who reads the digits that are drawn:
# python tools/train.py configs/classification/biformer/biformer-micro_embedded.py
val_evaluator = dict(
    type="DigitsInBoxes",
    classifier="configs/classification/biformer/biformer-micro_embedded.py",
    checkpoint="work_dirs/biformer-micro_embedded/epoch_20.pth",
)
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
