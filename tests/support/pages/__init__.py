"""What a reader sees: pages in a browser, and the commands of the documentation."""
