# As unet-vmamba3d-pico_mni152.py, with a small HyMamba. Pre-trained by mambamim-hymamba-pico_mni152.py:
# --cfg-options model.network.pretrained=work_dirs/mambamim-hymamba-pico_mni152/encoder_only.pth
_base_ = ["unet-vmamba3d-pico_mni152.py"]

model = dict(
    network=dict(
        _delete_=True,
        decoder="hymamba",
        encoder="hymamba_pico",
        spatial_dims=3,
        num_classes=3,
        in_chans=1,
        pretrained=False,
    ),
)
