"""What is done with studies besides running them: list, measure, rename, remove, clean up."""
