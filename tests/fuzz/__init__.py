"""A coverage-guided search for input that makes a parser do anything but read it or raise its own error.

python -m tests.fuzz [--seconds 60] [--only NAME] runs it, outside the test suite; it needs the extra `fuzz` (atheris).
"""
