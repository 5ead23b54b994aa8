"""Sources of labeled images: folders, tables, archives, the hub, registered data sets."""
