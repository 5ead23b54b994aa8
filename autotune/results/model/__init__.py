"""A trained model: its folder, prediction, export."""
