"""Complete jobs, built from a configuration: what the entry points and the trainer share."""
