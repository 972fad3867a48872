"""The ledger: requests, fulfilments, versions, and the chain of events, in SQLite or PostgreSQL."""
