"""From a study file to an open study."""
