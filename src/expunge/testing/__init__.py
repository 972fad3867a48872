"""Conformance checks for authors of methods, which every built-in method passes (`expunge.testing.conformance`)."""
