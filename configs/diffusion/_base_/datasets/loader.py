# Images of all shapes, in batches of one shape with about 512 x 512 pixels.
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(type="BucketBatchSampler"),
    collate_fn=dict(type="collate_records"),
    dataset=dict(
        size=512,
        buckets=True,
        # To train from cached latents and captions set this to False, and add to custom_hooks
        # dict(type="CacheHook", folder="cache/coco").
        random_crop=True,
        caption_dropout=0.1,
        min_side=1 / 32,
        max_instances=30,
    ),
)
