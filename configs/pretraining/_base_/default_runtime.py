# What every masked pre-training shares. At the end the encoder alone is in encoder_only.pth, which fine-tuning configs
# take as `pretrained`.
_base_ = ["../../classification/_base_/default_runtime.py"]
custom_imports = dict(imports=["vssm.medical.training", "vssm.classify"], allow_failed_imports=False)

# The finest skip gets no gradient, and neither do parameters that official files hold and nobody uses.
find_unused_parameters = True
# The loss on masked patches is all there is to judge by.
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None

default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(save_best=None),
    encoder=dict(type="EncoderFileHook"),
)
log_processor = dict(window_size=20)
randomness = dict(seed=0)
