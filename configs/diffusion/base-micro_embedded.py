# python tools/train.py configs/diffusion/base-micro_embedded.py
# Writes a pipeline of diffusers to work_dirs/base-micro_embedded/pipeline, which
# roictrl-micro_embedded.py starts from.
_base_ = ["_base_/datasets/embedded_cards.py", "_base_/schedule.py"]
default_scope = "visattn"

model = dict(
    type="LatentDiffusion",
    # Patches of 2 x 2 pixels, so that maps are 8 x 8 and 4 x 4.
    vae=dict(factor=2),
    unet=dict(
        sample_size=8,
        in_channels=12,
        out_channels=12,
        block_out_channels=(48, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,  # heads, as this class of diffusers reads it
        norm_num_groups=8,
    ),
    text=dict(
        words=(
            "a", "and", "on", ",", "red", "yellow", "green", "cyan", "blue", "pink", "black",
            "grey", "white", "zero", "one", "two", "three", "four", "five", "six", "seven",
            "eight", "nine",
        ),
        max_length=20,
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    ),
    scheduler=dict(
        beta_schedule="squaredcos_cap_v2",
        # The image: flat grounds and glyphs are learned sooner than noise or v.
        prediction_type="sample",
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    ),
    snr_gamma=2.0,
    sampling=dict(num_inference_steps=25, guidance_scale=2.0),
)  # fmt: skip
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = dict(
    type="WarmupCosineLR", T_max=3000, warmup=100, warmup_lr=1e-5, min_lr=2e-5, by_epoch=False
)
train_cfg = dict(type="ResumableIterTrainLoop", max_iters=3000, val_interval=3000)
default_hooks = dict(checkpoint=dict(interval=500))
custom_hooks = [
    dict(type="ModelEmaHook", decay=0.99),
    dict(type="SavePipelineHook"),
]
