"""Weights that rest on the CPU: results are those of a model on its device, and no weight is used where it rests."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan, Step
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods import Method, make_method
from stepvar.models import offload
from stepvar.models.blocks import BlockRun
from stepvar.models.infinity import Infinity
from stepvar.models.infinity_star.encode import encode
from stepvar.models.offload import SLOTS, BlockStream, Group, blocks_of, split, tensors_of, weights_on_device
from tests.helpers import WIDE, make_model, make_settings, make_star
from tests.media.videos import make_video
from tests.methods.families import ROWS, FamilyRow

CPU = torch.device("cpu")
ONE_EACH = list({row.family: row for row in ROWS}.values())
KINDS: list[tuple[Any, int]] = [("model", 0), ("sequential", 0), ("sequential", 1)]


class Memory:
    """Pieces of the device's memory that offloading asks for: those that are there now, and the most at a time."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self.most = 0

    def held(self) -> int:
        self.pieces = [piece for piece in self.pieces if piece() is not None]
        return sum(piece().nbytes() for piece in self.pieces)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """Notes what is allocated, and spoils every weight at rest, so that one used there shows in the result."""
    noted, allocate = Memory(), offload.device_memory

    def device_memory(nbytes: int, device: torch.device) -> Tensor:
        made = allocate(nbytes, device)
        noted.pieces.append(weakref.ref(made.untyped_storage()))
        noted.most = max(noted.most, noted.held())
        return made

    def spoiled(self: Group) -> None:
        for tensor in self.tensors:
            tensor.data = torch.full(tensor.shape, torch.nan, dtype=tensor.dtype)

    monkeypatch.setattr(offload, "device_memory", device_memory)
    monkeypatch.setattr(Group, "rest", spoiled)
    yield noted


def run(model: Any, row: FamilyRow, plan: Plan, method: Method) -> tuple[Tensor, Tensor]:
    state = generate(model, row.condition(range(2)), plan, method, SeededNoise(range(2)))
    return state.latent, model.decode(state)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", ["dense", "fastvar"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_an_offloaded_model_gives_the_same_bits(
    row: FamilyRow, name: str, kind: tuple[Any, int], memory: Memory
) -> None:
    changes = {"fastvar": {"prune": (0.5,), "skip": 0, "blocks_before": 1, "blocks_after": 1}}
    method, model = make_method(name, **changes.get(name, {})), copy.deepcopy(row.model())
    plan = method.plan(make_settings(row.schedule), model.info, 2)
    expected = run(model, row, plan, method)
    model.enable_offload(kind[0], CPU, kind[1])
    for _ in range(2):
        found = run(model, row, plan, method)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert memory.held() == 0
    during_loop, decoding = weights_on_device(model, *kind)
    always = sum(tensor.nbytes for tensor in split(model, *kind).rest)
    assert memory.most == max(during_loop, decoding) - always


def test_a_preview_finds_the_decoder_on_the_device(memory: Memory) -> None:
    model, row = make_model(), ROWS[1]
    plan, previews = Method().plan(make_settings(WIDE), model.info, 2), []

    def on_scale_end(_: Step, state: Any) -> None:
        previews.append(model.decode(state))

    def generated() -> list[Tensor]:
        previews.clear()
        generate(model, row.condition(range(2)), plan, Method(), SeededNoise(range(2)), on_scale_end=on_scale_end)
        return list(previews)

    expected = generated()
    model.enable_offload("sequential", CPU)
    assert all(torch.equal(one, other) for one, other in zip(generated(), expected, strict=True))


def test_a_video_is_encoded_by_the_encoder_on_the_device(memory: Memory) -> None:
    model = make_star()
    given, size = make_video(5, 32, 48), (48, 32)
    expected = encode(model, given, size, torch.Generator().manual_seed(0))
    model.enable_offload("model", CPU)
    assert torch.equal(encode(model, given, size, torch.Generator().manual_seed(0)), expected)


def test_a_generation_that_fails_leaves_nothing_on_the_device(memory: Memory) -> None:
    model = make_model()
    plan = Method().plan(make_settings(WIDE), model.info, 2)
    model.enable_offload("sequential", CPU)

    def fail(step: Step, _: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, ROWS[1].condition(range(2)), plan, Method(), SeededNoise(range(2)), on_scale_end=fail)
    assert memory.held() == 0


def test_weights_come_back_as_they_were() -> None:
    model, untouched = make_model(), make_model()
    for kind in KINDS:
        model.enable_offload(kind[0], CPU, kind[1])
        assert model.device == CPU and model.offload is not None
    model.disable_offload()
    assert model.offload is None and all(block.stream is None for block in blocks_of(model))
    states = model.state_dict(), untouched.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    assert model.to(torch.bfloat16).dtype == torch.bfloat16


def test_an_offloaded_model_is_not_moved() -> None:
    model = make_model()
    model.enable_offload("model", CPU)
    for move in (lambda: model.to("cpu"), lambda: model.to(torch.bfloat16), lambda: model.float()):
        with pytest.raises(UsageError, match="the model is offloaded"):
            move()


@pytest.mark.parametrize("count", [-1, 4, 5])
def test_as_many_blocks_stay_as_there_are_or_it_is_said(count: int, tiny_model: Infinity) -> None:
    with pytest.raises(UsageError, match=rf"blocks_on_device={count}: must be from 0 to 3 for this model"):
        split(tiny_model, "sequential", count)


def test_every_weight_belongs_to_one_part(tiny_model: Infinity) -> None:
    for kind in KINDS:
        parts, streamed, rest = split(tiny_model, *kind)
        placed = [tensor for groups in parts.values() for group in groups for tensor in group] + rest
        placed += [tensor for block in streamed for tensor in tensors_of(block)]
        assert sorted(map(id, placed)) == sorted(map(id, tensors_of(tiny_model)))
    blocks = blocks_of(tiny_model)
    assert [blocks.index(block) for block in split(tiny_model, "sequential", 2).streamed] == [0, 2]


def test_sequential_needs_the_least_memory(tiny_model: Infinity) -> None:
    whole = weights_on_device(tiny_model, None)[0]
    in_parts = weights_on_device(tiny_model, "model")[0]
    stay = [weights_on_device(tiny_model, "sequential", count)[0] for count in (0, 1)]
    block = max(sum(tensor.nbytes for tensor in tensors_of(one)) for one in blocks_of(tiny_model))
    assert stay[0] < stay[1] <= in_parts < whole
    assert stay[0] == pytest.approx(in_parts - (4 - SLOTS) * block, rel=0.02)


def test_weights_in_any_format_and_order_lie_in_one_piece() -> None:
    torch.manual_seed(0)
    weights = [
        torch.randn(5, 3).t(),
        torch.randint(-128, 127, (7, 2), dtype=torch.int8),
        torch.randn(3, 1).to(torch.float8_e4m3fn),
        torch.randn(2, 3, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last),
        torch.randn(9)[::2],  # not dense
        torch.tensor(True),
    ]
    held = [nn.Parameter(weight.clone(), requires_grad=False) for weight in weights]
    group = Group(held, pinned=False)
    memory = torch.zeros(group.nbytes, dtype=torch.uint8)
    group.copy_to(memory)
    for place in (lambda: None, lambda: group.use(memory), group.rest):
        place()
        for weight, tensor in zip(weights, held, strict=True):
            assert torch.equal(tensor.float(), weight.float()) and tensor.dtype == weight.dtype
    assert [tensor.stride() for tensor in held[:4]] == [weight.stride() for weight in weights[:4]]


def test_blocks_may_come_in_any_order() -> None:
    layers = [nn.Linear(2, 2, bias=False) for _ in range(5)]
    expected = [layer.weight.clone() for layer in layers]
    stream = BlockStream([Group(tensors_of(layer), pinned=False) for layer in layers], CPU)
    stream.open()
    for index in (0, 1, 2, 3, 4, 0, 3, 1, 1, 4, 0):
        with stream.visit(index):
            assert torch.equal(layers[index].weight, expected[index])
            slots = {slot.memory.untyped_storage().data_ptr() for slot in stream._slots}
            assert layers[index].weight.untyped_storage().data_ptr() in slots and len(slots) == SLOTS
            assert (index + 1) % 5 in [slot.holds for slot in stream._slots]  # the next one has been asked for
    stream.close()
    assert not stream._slots


def test_weights_without_data_rest_without_data() -> None:
    model = make_model().to("meta")
    model.enable_offload("sequential", torch.device("meta"))
    assert model.device.type == "meta" and all(tensor.is_meta for tensor in tensors_of(model))


@pytest.mark.parametrize("row", ONE_EACH, ids=str)
def test_fused_blocks_find_their_weights_and_a_smaller_cache(
    row: FamilyRow, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, method = copy.deepcopy(row.model()).set_cache_dtype("int8"), make_method("stepvar")
    plan = method.plan(make_settings(row.schedule), model.info, 2)
    in_blocks = run(model, row, plan, method)
    monkeypatch.setattr(BlockRun, "can_fuse", lambda self, tokens: True)
    expected = run(model, row, plan, method)
    torch.testing.assert_close(expected[0], in_blocks[0], atol=1e-3, rtol=1e-3)
    model.enable_offload("sequential", CPU)
    found = run(model, row, plan, method)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
