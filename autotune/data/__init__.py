"""Images: where they come from, how they are split, decoded and augmented."""
