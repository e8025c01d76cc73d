"""Pictures: one file per kind, pure functions of numbers, names and a path.

Figures are made as objects, without pyplot and its global state. matplotlib takes about a second to import, so it is
imported with the first picture.
"""
