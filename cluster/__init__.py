"""Where Ray is started or joined, and the cluster definitions."""
