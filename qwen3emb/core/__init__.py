"""Errors, records, storage, artifacts and leases, which all other packages use; imports none of them."""
