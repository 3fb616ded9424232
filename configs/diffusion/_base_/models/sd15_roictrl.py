# ROICtrl on Stable Diffusion 1.5: 249,204,464 parameters beside the frozen ones. Any folder, or
# name on the hub, of a Stable Diffusion 1.x can be model.pretrained.
model = dict(
    type="LatentDiffusion",
    pretrained="stable-diffusion-v1-5/stable-diffusion-v1-5",
    roictrl=dict(max_instances=30, dropout=0.2, unpool_mode="official", shuffle="train_only"),
    regularisation=0.01,
    snr_gamma=None,
    grad_checkpointing=True,
    sampling=dict(num_inference_steps=50, guidance_scale=7.5),
)
