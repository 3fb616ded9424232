# Of networks without a class token.
_base_ = "linear_ep32.py"

model = dict(heads=dict(linear=dict(pooling="gap")))
