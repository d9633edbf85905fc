"""What a command does once its line is read; entries import one of these, and only then."""
