# COCO 2017 with boxes but no masks; otherwise as coco_instance.py.
_base_ = ["mmdet::_base_/datasets/coco_detection.py"]

# Workers are started anew each epoch, because that is when they are seeded.
train_dataloader = dict(batch_size=2, num_workers=4, persistent_workers=False)
