"""`zoo leaderboard`: result files as a site that needs nothing else. Only what may be compared is ranked.

boards.py              results -> boards (same data, same protocol), rankings, paired differences
plots.py               a score over bits, tokens or speed, as SVG
tables.py              heads, cells and folded tables of all pages
gallery.py             what tokenizers and codecs make of sample pictures and recordings
index_page.py          tables and plots
tokenizer_page.py      one tokenizer: scores, reconstructions, worst items, protocol
generation_boards.py   results of generators -> boards (also: same budget), rankings by three trainings
generation_section.py  their tables and plots on the first page
generation_samples.py  samples of a generator whose weights ship, or its stored sheet
generator_page.py      one generator: scores, samples, classes, trainings, protocol
command.py             the command, and `build_site`
"""

__all__: list[str] = []
