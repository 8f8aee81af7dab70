"""The YAML of a run as frozen classes, one file per section. Imports only `core`."""
