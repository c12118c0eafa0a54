# As classifier.py, taught by DeiT's teacher, whose weights are downloaded when training starts.
_base_ = ["classifier.py"]

model = dict(
    distillation=dict(
        teacher=dict(name="regnety_160.deit_in1k", pretrained=True, num_classes=1000),
        kind="hard",
        alpha=0.5,
        tau=1.0,
    ),
)
