"""One transformer that captions images and paints images from text."""

__version__ = "0.1.0"
