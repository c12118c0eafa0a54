# Training on slices of 224 pixels, evaluation on volumes.
_base_ = ["slices.py"]

val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="list_collate"),
)
test_dataloader = val_dataloader
# empty: "transunet" scores empty masks as the published figures do, "clean" leaves them out.
val_evaluator = dict(type="VolumeMetric", measures=("dice",), empty="transunet")
test_evaluator = dict(type="VolumeMetric", measures=("dice", "hd95", "jaccard", "asd"), empty="transunet")
val_cfg = dict(type="VolumeValLoop", size=224, slices=16)
test_cfg = dict(type="VolumeTestLoop", size=224, slices=16)
