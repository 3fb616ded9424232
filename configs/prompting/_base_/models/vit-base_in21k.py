# Weights of AugReg on ImageNet-21k, from timm. Those that VPT and DAM-VP distribute are others, and
# results differ: --cfg-options model.backbone.pretrained=False model.checkpoint=FILE
model = dict(
    type="ImageClassifier",
    backbone=dict(
        model_name="vit_base_patch16_224.augreg_in21k", pretrained=True, num_classes=1000
    ),
    checkpoint=None,
    checkpoint_ignore=["head."],
    # The papers', although the weights were trained with means and deviations of 0.5.
    data_preprocessor=dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
)
