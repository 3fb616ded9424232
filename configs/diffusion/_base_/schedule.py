_base_ = "../../_base_/default_runtime.py"

default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=1000),
)
custom_hooks = [dict(type="SavePipelineHook")]
log_processor = dict(by_epoch=False)
