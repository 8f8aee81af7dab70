"""The stage `corpus`: files of any kind into passages, docstring pairs and held-out queries."""
