"""Who runs trials: this process, this machine's GPUs, a Ray cluster."""
