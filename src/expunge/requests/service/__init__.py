"""The desk as a small local service: an API with a typed schema, long jobs with progress, and one plain page."""
