# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/dinat/dinat-large-384_8xb64_in1k.py --launcher pytorch
# Fine-tunes the weights of ImageNet-22k; give them by --cfg-options model.checkpoint=FILE
_base_ = "dinat-large_8xb64_in1k.py"

model = dict(backbone=dict(model_name="dinat_large_384"))
train_dataloader = dict(
    dataset=dict(pipeline=[dict(_base_.train_dataloader.dataset.pipeline[0], img_size=384)]),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[dict(_base_.val_dataloader.dataset.pipeline[0], img_size=384, crop_pct=1.0)]
    ),
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(weight_decay=1e-10))
