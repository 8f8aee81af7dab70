"""The stage `index` and the search in what it wrote."""
