"""picogpt beside other programs: see README.md here."""
