"""What keeps a run going and says how it went: checkpoints, logs, progress, status."""
