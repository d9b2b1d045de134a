"""What users do wrong, and what the package says: each kind is provoked, its answer recorded in docs/mistakes.md."""
