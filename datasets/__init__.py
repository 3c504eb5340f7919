"""LQV-D4RL and V-D4RL: what they are, reading, checking, rebuilding."""
