"""Tables of images (CSV, TSV, Parquet): reading their cells, finding their files."""
