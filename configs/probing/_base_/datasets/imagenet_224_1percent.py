# One image of a hundred of each class.
_base_ = "imagenet_224.py"

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="FewShot",
        shots=0.01,
        dataset=_base_.train_dataloader.dataset,
    ),
)
