# COCO's keypoints in crops of 256 x 192: data/coco with annotations/, train2017/ and val2017/. Persons are those that a
# detector with a person AP of 56.4 found, in the file that the authors of Simple Baselines published; without it, say
# `test_dataloader.dataset.boxes=None` and the annotated boxes are taken, which gives higher figures.
root = "data/coco/"
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=False,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="CocoKeypoints",
        ann_file=root + "annotations/person_keypoints_train2017.json",
        images=root + "train2017",
        size=(256, 192),
        sigma=2.0,
        augment={},
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="CocoKeypoints",
        ann_file=root + "annotations/person_keypoints_val2017.json",
        images=root + "val2017",
        boxes=root + "person_detection_results/COCO_val2017_detections_AP_H_56_person.json",
        size=(256, 192),
        sigma=2.0,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="KeypointAP",
    dataset=dict(
        type="CocoKeypoints",
        ann_file=root + "annotations/person_keypoints_val2017.json",
        images=root + "val2017",
        size=(256, 192),
    ),
)
test_evaluator = val_evaluator
model = dict(
    type="PoseEstimator",
    keypoints=17,
    size=(256, 192),
    sigma=2.0,
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
)
