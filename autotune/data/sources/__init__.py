"""Where labelled images come from: folders, tables, archives, hubs, data sets by name."""
