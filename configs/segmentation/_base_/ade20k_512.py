# ADE20K under data/ade/ADEChallengeData2016, crops of 512 x 512 pixels, 2 images per process (8 x 2 = 16 in all).
# Tested whole with the short side at 512; the averaged test (TTA) takes six scales from 0.5 to 1.75, each flipped and
# not.
_base_ = ["mmseg::_base_/datasets/ade20k.py"]

train_dataloader = dict(batch_size=2, num_workers=4)
