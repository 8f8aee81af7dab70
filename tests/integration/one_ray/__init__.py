"""Tests whose stages run in the process of the tests, on one Ray that they share."""
