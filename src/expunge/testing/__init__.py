"""For authors of methods: the conformance checks every built-in method passes (`expunge.testing.conformance`)."""
