"""Colours that people who see fewer of them tell apart too.

Source: Okabe and Ito, "Color Universal Design" (https://jfly.uni-koeln.de/color/, 2002).
"""

BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
BLUE, VERMILION, PURPLE = "#0072b2", "#d55e00", "#cc79a7"
GRAY = "#6b7280"
"""Not one of theirs: for references and what is in the background."""
