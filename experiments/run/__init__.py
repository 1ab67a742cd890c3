"""What runs a training run: command line, folder, checkpoints, processes, display and report."""
