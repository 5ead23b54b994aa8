"""Images, archives and publishers of data sets for tests."""
