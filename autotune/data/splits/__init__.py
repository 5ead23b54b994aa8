"""Training, validation and test images of a study."""
