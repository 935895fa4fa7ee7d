"""What was done and what came of it: the report, as JSON and as a page."""
