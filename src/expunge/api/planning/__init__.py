"""Which method fulfils a request, at what cost, and when to train again."""
