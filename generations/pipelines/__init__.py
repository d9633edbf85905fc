"""Whole jobs made of the rooms below: what entries and tests during training share."""
