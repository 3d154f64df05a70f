"""The VAREdit family: Infinity models that edit an image by instruction."""

from stepvar.models.varedit.model import EditCondition, VAREdit

__all__ = ["EditCondition", "VAREdit"]
