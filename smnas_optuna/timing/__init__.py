"""How long a detector takes for an image, and on which device."""
