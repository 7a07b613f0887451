"""Measures the inference time of detectors, and serialises it against other work on the device."""
