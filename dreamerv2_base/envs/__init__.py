"""Environments and rollouts. Nothing here imports TensorFlow."""
