_base_ = "baseline_120e.py"

model = dict(backbone=dict(model_name="dcal_deit_tiny_patch16", glca_ratio=0.3))
