"""Where text comes from: files, the hub, and what it is stored in."""
