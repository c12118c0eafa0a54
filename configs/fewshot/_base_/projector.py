# What the recipes of Mamba-FSCIL share. Rates are for 512 images a step: eight processes of 64.
_base_ = ["../../classification/_base_/default_runtime.py"]
custom_imports = dict(imports=["vssm.classify", "vssm.fewshot"], allow_failed_imports=False)

model = dict(type="IncrementalClassifier")
loader = dict(num_workers=4, collate_fn=dict(type="default_collate"))
train_dataloader = dict(
    **loader,
    batch_size=64,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="SessionClasses"),
)
val_dataloader = dict(
    **loader,
    batch_size=100,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="SessionClasses"),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", momentum=0.9, weight_decay=5e-4))
val_cfg = {}
test_cfg = {}
auto_scale_lr = dict(enable=False, base_batch_size=512)
del loader
