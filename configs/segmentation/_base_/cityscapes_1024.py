# Cityscapes under data/cityscapes, prepared by `vssm prepare cityscapes`: 19 classes, crops of 1024 x 1024 pixels, 1
# image per process (8 in all).
_base_ = ["mmseg::_base_/datasets/cityscapes_1024x1024.py"]

train_dataloader = dict(batch_size=1)
