"""How the embedded model "scenes-video" is made: clips, tokenizer, transformer, judge, export."""
