"""Settings of the whole suite."""

try:
    from hypothesis import settings
except ModuleNotFoundError:  # tests/gpu does without
    settings = None

if settings is not None:
    # other processes share the cores: a slow example is not a wrong one
    settings.register_profile("suite", deadline=None)
    settings.load_profile("suite")
