"""Sources of labelled images: folders, tables, archives, the hub, registered data sets."""
