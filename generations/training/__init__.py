"""The training loop, optimisation, checkpoints of a run, and curves."""
