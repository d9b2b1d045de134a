"""Mutation runs: small faults put into the package one at a time, to see which of them the mirrored tests notice.

mutmut 3.8.1 and cosmic-ray 8.7.0 were looked at first. mutmut leaves out decorated functions (`torch.no_grad`,
properties, autograd functions), class bodies and module tables, which is half of what can go wrong here, and draws no
sample; cosmic-ray starts a process for each fault, of which importing torch and transformers alone takes seconds, runs
the same tests for all files, and knows no dropped call or argument.
"""
