"""Services of a run: checkpoints, locks, history, devices, memory, readers."""
