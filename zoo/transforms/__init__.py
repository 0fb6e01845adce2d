"""Functions on tokens and features that do not belong to one family."""
