# COCO 2017 with boxes and masks under data/coco, 1333 x 800 pixels, 2 images per process (8 x 2 = 16 in all).
_base_ = ["mmdet::_base_/datasets/coco_instance.py"]

# Workers are started anew each epoch, because that is when they are seeded.
train_dataloader = dict(batch_size=2, num_workers=4, persistent_workers=False)
