"""The command line: commands, options, the terminal, tables and plots, and what becomes of failures."""
