# COCO's keypoints in crops of 384 x 288, otherwise as coco_256x192.py.
_base_ = ["coco_256x192.py"]

train_dataloader = dict(dataset=dict(size=(384, 288), sigma=3.0))
val_dataloader = dict(dataset=dict(size=(384, 288), sigma=3.0))
test_dataloader = dict(dataset=dict(size=(384, 288), sigma=3.0))
val_evaluator = dict(dataset=dict(size=(384, 288)))
test_evaluator = dict(dataset=dict(size=(384, 288)))
model = dict(size=(384, 288), sigma=3.0)
