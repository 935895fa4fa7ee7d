"""What can be given as SOURCE: one small module for each kind of file, and ``load_source`` for all of them.

Nothing of a file is executed, unless it is a Python model file, which is a program, or ``--trust-pickle``
allows it.
"""
