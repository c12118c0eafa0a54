# UPerNet on segman_pico, the counterpart of mmscope_segman-pico_digits-ade.py: the same encoder, data and steps. Three
# epochs, some minutes on two CPU cores.
_base_ = ["upernet_vmamba-pico_digits-ade.py"]

epochs = 3
model = dict(backbone=dict(model_name="segman_pico"))
train_cfg = dict(max_epochs=epochs)
# The decoders learn ten times as fast as the encoder, as SegMAN's does officially.
optim_wrapper = dict(
    constructor="FamilyDecayConstructor",
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0), auxiliary_head=dict(lr_mult=10.0))),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-5,
        by_epoch=True,
        begin=0,
        end=epochs,
        T_max=epochs,
        convert_to_iter_based=True,
    ),
]
