"""Classical codecs as rows beside the tokenizers: what a user would pick instead, on the same items, at their real bit rates.

    zoo eval baseline opus --data speech16k --split val        rates in kbit/s
    zoo eval baseline jpeg --data images128 --split val        rates in the codec's own quality
    zoo eval baseline h264 --data video128 --split val         rates in its constant rate factor
"""

__all__: list[str] = []
