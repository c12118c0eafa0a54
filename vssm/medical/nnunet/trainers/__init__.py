"""What nnU-Net searches for trainers; the environment variable ``nnUNet_extTrainer`` names this folder."""
