"""`zoo leaderboard`: result files as a site that needs nothing else. Only what may be compared is ranked.

boards.py           results -> boards (same data, same protocol), rankings, paired differences
plots.py            a score over bits or speed, as SVG
gallery.py          what tokenizers and codecs make of sample pictures and recordings
index_page.py       tables and plots
tokenizer_page.py   one tokenizer: scores, reconstructions, worst items, protocol
command.py          the command, and `build_site`
"""

__all__: list[str] = []
