"""One file a command: its options, which are the fields of a dataclass, and what it does."""
