# The paper states neither rates nor lengths; these are the zoo's.
_base_ = "schedule.py"

optim_wrapper = dict(
    # --amp bf16, fp16 or none. For states of 8 bits set optimizer.type to AdamW8bit, which is there
    # where bitsandbytes is.
    type="AutocastOptimWrapper",
    dtype="bfloat16",
    optimizer=dict(type="AdamW", lr=5e-5, weight_decay=1e-2),
    # If gates stay near 0 (see gate_* in the log), raise their rate by lr_mult.
    paramwise_cfg=dict(custom_keys={"alpha_": dict(lr_mult=1.0, decay_mult=0.0)}),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = dict(type="LinearLR", start_factor=1e-3, begin=0, end=1000, by_epoch=False)
train_cfg = dict(type="ResumableIterTrainLoop", max_iters=60_000, val_interval=60_000)
# Of batches in which no box is left.
find_unused_parameters = True
