"""Detector networks: builds them, counts their costs, estimates their memory, exports them."""
