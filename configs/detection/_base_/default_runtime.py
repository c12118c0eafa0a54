# mmdet's runtime with this package's types, epochs that a resumed run repeats, and checkpoints that are never
# half-written.
_base_ = ["mmdet::_base_/default_runtime.py"]

custom_imports = dict(imports=["vssm.mm"], allow_failed_imports=False)

default_hooks = dict(
    epoch_seed=dict(type="EpochSeedHook"),
    checkpoint=dict(type="AtomicCheckpointHook", interval=1, max_keep_ckpts=2, save_best="coco/bbox_mAP"),
)
randomness = dict(seed=0)
