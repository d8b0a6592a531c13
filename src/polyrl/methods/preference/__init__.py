"""Preference methods, one paper a file: policies fitted to pairs of a preferred and a dispreferred response."""
