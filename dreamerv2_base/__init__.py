"""DreamerV2 for TensorFlow 2, usable without SeMOPO.

Importing the package does not import TensorFlow: environment workers are
spawned from it and must stay without (see `dreamerv2_base.tf`).
"""
