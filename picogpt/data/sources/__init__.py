"""Sources of text: files, the hub, and the formats they are stored in."""
