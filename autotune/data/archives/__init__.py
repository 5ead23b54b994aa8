"""Archives of images: where they are kept, how they are fetched, and how they are unpacked."""
