"""The code of the commands. An entry point imports one of these after parsing its command line."""
