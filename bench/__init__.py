"""Figures by command: `python -m bench speed | efficiency | model`. Measures the program from outside; nothing imports it."""
