# What every medical run shares: the runtime of all runs, with the scores and pictures of this one.
# Importing vssm.medical.training registers the networks, data sets, losses, metrics and loops with mmengine.
_base_ = ["../../classification/_base_/default_runtime.py"]
custom_imports = dict(imports=["vssm.medical.training"], allow_failed_imports=False)

default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(save_best="dice/mean", rule="greater"),
    # After a test: scores per case and class, and slices of the first volumes with truth and prediction.
    tables=dict(type="OrganTableHook"),
    pictures=dict(type="OverlayHook", most=3),
)
log_processor = dict(window_size=20)
randomness = dict(seed=42)
