"""What a run has around its steps: checkpoints, locks, history, devices, memory, readers."""
