"""How the embedded model "scenes" is made: data, tokenizer, transformer, judge, export."""
