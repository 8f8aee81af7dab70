"""What everything stands on: errors, records, storage, artifacts, leases. Imports nothing of ours."""
