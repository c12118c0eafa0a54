# The official recipe of VSSD-S and -B and of MSVMamba-B's third version: VMamba's with smaller rates,
# 3e-4 per 512 images.
_base_ = ["schedule_300e.py"]

optim_wrapper = dict(optimizer=dict(lr=6e-4))
param_scheduler = [
    # From 1e-6.
    dict(type="LinearLR", start_factor=1 / 600, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=6e-6,
        by_epoch=True,
        begin=20,
        end=300,
        T_max=280,
        convert_to_iter_based=True,
    ),
]
