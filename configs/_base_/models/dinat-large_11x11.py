# DiNAT-L with windows of 11 x 11, in single precision.
dinat_large = dict(
    type="TimmBackbone",
    model_name="dinat_large_21k_11x11",
    out_indices=(0, 1, 2, 3),
    norm_outputs=dict(type="layernorm2d", eps=1e-5),
    drop_path_rate=0.3,
    dilations=(
        (1, 14, 1),
        (1, 4, 1, 7),
        (1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 3),
        (1, 1, 1, 1, 1),
    ),
    # The authors' ImageNet-22k file: --cfg-options model.backbone.checkpoint=FILE
    checkpoint=None,
)
