"""The stage `merge`: SLERP over checkpoints, and the search for which of them."""
