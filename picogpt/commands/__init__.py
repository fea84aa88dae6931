"""The commands, one file each: its options, which are the fields of a dataclass, and what it does."""
