"""A data set of the hub, fetched by a process in the background while it is trained on."""
