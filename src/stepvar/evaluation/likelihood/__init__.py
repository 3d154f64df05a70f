"""How likely a model finds given images: bits per image under teacher forcing, dense and with every method."""
