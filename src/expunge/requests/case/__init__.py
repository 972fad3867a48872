"""Case files: what they say, how they are signed and verified, and how they look."""
