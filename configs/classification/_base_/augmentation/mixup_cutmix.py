# Images of a batch mixed, as DeiT has it, and parts of them erased.
model = dict(
    mixup=dict(
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        prob=1.0,
        switch_prob=0.5,
        mode="batch",
        label_smoothing=0.1,
    ),
    data_preprocessor=dict(random_erasing=dict(probability=0.25, mode="pixel", max_count=1)),
)
