"""Files that came from elsewhere, and files that are written whole or not at all."""
