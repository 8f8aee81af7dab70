"""The stage `corpus`: files of any kind into passages, labelled pairs and held-out queries."""
