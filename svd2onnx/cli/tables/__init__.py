"""Results as rich renderables, for people; the JSON beside a file says the same to programs."""
