# Of networks whose training had a loss on the class token: it is among the tokens.
_base_ = "linear_ep32.py"

model = dict(heads=dict(ep=dict(pooling="ep_all")))
