"""The recipe of "wardrobe", the embedded text-to-image model of photographs: see docs/models/wardrobe.md."""
