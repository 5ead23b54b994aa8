"""Augmented views of images, and the images of a study."""
