"""Deletion requests: a ledger, the lineage of the model, signed case files. The way in is `requests.desk.Desk`."""
