"""Work that is not done twice: records of it in a folder, found by all that it depends on."""
