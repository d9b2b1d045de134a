"""What is run from the repository and is no part of the package."""
