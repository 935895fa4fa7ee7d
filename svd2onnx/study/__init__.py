"""Many settings of one network side by side (``sweep``), and a look at it before any (``inspection``)."""
