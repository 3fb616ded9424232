# python tools/probe.py configs/probing/mae/mae-vit-base_knn_in1k.py
# k-NN and both heads on features that are read once; some 400 GB on disk.
_base_ = "mae-vit-base_linear-ep32_8xb512_in1k.py"

probing = dict(cached=True, cache_dir="work_dirs/features", dtype="float16", knn=True)
