"""The parts of scripts/reproduce_tables.py: what is trained, how it is run, how it is shown."""
