"""Deletion requests: a ledger, the lineage of the model, signed case files. `expunge.requests.desk.Desk` is the way in."""
