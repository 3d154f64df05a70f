"""What the published code of Infinity imports and a machine may lack, for :mod:`benchmarks.upstream`."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMPORTED_ONLY = (
    "cv2",
    "imageio",
    "matplotlib",
    "matplotlib.pyplot",
    "pytz",
    "torchvision",
    "torchvision.transforms",
    "tqdm",
)
"""What their modules import and a generation never calls."""


class NeverCalled(ModuleType):
    """Stands in for a module, and for everything in it, that is imported and not used."""

    def __getattr__(self, name: str) -> NeverCalled:
        if name.startswith("__"):
            raise AttributeError(name)
        return NeverCalled(f"{self.__name__}.{name}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{self.__name__}: only stands in for a package that is not installed")


class DropPath(nn.Module):
    """timm's, outside of training: the identity."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


def fused_attention(q: Tensor, k: Tensor, v: Tensor, *lengths: Any, scale: float) -> Tensor:
    """The FlashAttention-2 that is compiled into PyTorch; ends of joined sequences, or None, and longest lengths."""
    return torch.ops.aten._flash_attention_forward(q, k, v, *lengths, 0.0, False, False, scale=scale)[0]


@cache
def has_fused_attention() -> bool:
    """Whether it can be called like that here: its operator is PyTorch's own, and may change."""
    if not torch.cuda.is_available():
        return False
    q = torch.zeros(8, 2, 64, device="cuda", dtype=torch.bfloat16)
    ends = torch.tensor([0, 8], device="cuda", dtype=torch.int32)
    try:
        fused_attention(q[None], q[None], q[None], None, None, 8, 8, scale=1.0)
        fused_attention(q, q, q, ends, ends, 8, 8, scale=1.0)
    except (RuntimeError, TypeError):
        return False
    return True


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float = 1.0) -> Tensor:
    """Attention of (B, L, H, c)."""
    if q.is_cuda and has_fused_attention():
        return fused_attention(q, k, v, None, None, q.shape[1], k.shape[1], scale=softmax_scale)
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float = 1.0,
) -> Tensor:
    """The same for joined sequences: q (sum of lengths, H, c), kv (sum of lengths, 2, H, c). All q have one length."""
    k, v = kv.unbind(1)
    if q.is_cuda and has_fused_attention():
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return fused_attention(q, k, v, *lengths, scale=softmax_scale)
    outputs = []
    for row, (start, end) in enumerate(zip(cu_seqlens_k[:-1].tolist(), cu_seqlens_k[1:].tolist(), strict=True)):
        queries = q[row * max_seqlen_q : (row + 1) * max_seqlen_q]
        outputs.append(flash_attn_func(queries[None], k[None, start:end], v[None, start:end], 0.0, softmax_scale)[0])
    return torch.cat(outputs)


def module(name: str, **contents: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(contents)
    return made


def stand_ins() -> tuple[dict[str, ModuleType], list[str]]:
    """Modules that replace what their code imports, and what each is, in words."""
    modules = {
        "flash_attn": module(
            "flash_attn",
            flash_attn_func=flash_attn_func,
            flash_attn_varlen_kvpacked_func=flash_attn_varlen_kvpacked_func,
        ),
        "timm": module("timm"),
        "timm.loss": module("timm.loss", SoftTargetCrossEntropy=nn.CrossEntropyLoss),
        "timm.models": module("timm.models", register_model=lambda function: function),
        "timm.models.layers": module("timm.models.layers", DropPath=DropPath, drop_path=None),
    }
    attention = "the FlashAttention-2 compiled into PyTorch" if has_fused_attention() else "PyTorch's attention"
    words = [
        f"flash_attn's two functions: {attention}",
        "timm's DropPath: the identity, as it is outside of training",
        "Flan-T5: text features are given, on the host; checkpoints: random weights",
    ]
    for name in IMPORTED_ONLY:
        try:
            import_module(name)
        except Exception:  # whatever keeps an unused package from being imported
            modules[name] = NeverCalled(name)
            words.append(f"{name}: imported, never called")
    return modules, words


@contextmanager
def importable(code: Path) -> Iterator[None]:
    """A clone's ``infinity`` package can be imported. Afterwards that of another clone can be."""
    replaced, _ = stand_ins()
    before = {name: sys.modules[name] for name in replaced if name in sys.modules}
    sys.modules.update(replaced)
    sys.path.insert(0, str(code))
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.path.remove(str(code))
        for name in [*replaced, *(name for name in sys.modules if name.split(".")[0] == "infinity")]:
            sys.modules.pop(name, None)
        sys.modules.update(before)
