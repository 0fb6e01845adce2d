"""One module for each sub-command of `zoo`, imported when it is asked for."""
