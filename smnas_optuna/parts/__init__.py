"""The parts that detectors are assembled from: values with a canonical text and an MMDetection config; no torch."""
