"""Settings of the whole suite."""

from hypothesis import settings

# other processes share the cores: a slow example is not a wrong one
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
