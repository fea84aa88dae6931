"""The operating system: files, processes, signals, the hardware, the terminal."""
