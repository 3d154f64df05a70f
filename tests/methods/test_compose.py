"""Several methods in one generation, in Python and by name."""

from __future__ import annotations

import pytest

from stepvar.cli.options import parse_method
from stepvar.errors import UsageError
from stepvar.methods import Compose, Dense, DropGuidance, FastVAR, Method, Random, SkipLast, StepVAR, make_method
from stepvar.models.infinity import Infinity
from tests.helpers import SQUARE, equal_everywhere, generate_infinity, make_settings, make_text
from tests.methods.helpers import work

BOTH = Compose(StepVAR(keep=0.5, last=2), DropGuidance(last=1))


def test_each_part_does_its_work(tiny_model: Infinity) -> None:
    plan, text = make_settings(SQUARE), make_text((5, 3))
    generated = generate_infinity(tiny_model, plan, BOTH, text)
    assert [step.branches for step in generated.steps] == [2, 2, 2, 2, 1]
    assert [len(generated.kept(step)) for step in generated.steps] == [0, 0, 0, 1, 1]
    assert generated.state.cache.lengths == [keys.shape[2] for keys in generated.state.cache.keys]
    # Up to the scale where guidance ends, it is the pruned generation.
    pruned = generate_infinity(tiny_model, plan, StepVAR(keep=0.5, last=2), text)
    assert equal_everywhere(generated.logits[:-1], pruned.logits[:-1])
    assert work(generated.plan) < work(pruned.plan)


def test_the_order_of_parts_that_count_from_the_end_does_not_matter(tiny_model: Infinity) -> None:
    settings = make_settings(SQUARE)
    first = generate_infinity(tiny_model, settings, Compose(SkipLast(1), DropGuidance(last=3), StepVAR(last=3)))
    second = generate_infinity(tiny_model, settings, Compose(StepVAR(last=3), DropGuidance(last=3), SkipLast(1)))
    assert [step.branches for step in first.steps] == [2, 2, 1, 1]
    assert equal_everywhere(first.logits, second.logits)


def test_pruning_without_a_number_of_scales_prunes_the_last_that_run(tiny_model: Infinity) -> None:
    settings = make_settings(SQUARE)
    generated = generate_infinity(tiny_model, settings, Compose(SkipLast(1), StepVAR()))
    assert [len(generated.kept(step)) for step in generated.steps] == [0, 0, 0, 1]
    assert settings.late_scales() == 1 and SkipLast(2).edit(settings).late_scales() == 3


@pytest.mark.parametrize("method", [StepVAR(last=2), StepVAR(keep=(0.5, 0.5)), Random(keep=0.1, last=1)], ids=repr)
def test_pruning_only_what_is_skipped_is_refused(tiny_model: Infinity, method: Method) -> None:
    with pytest.raises(UsageError, match=r"but the last 2 are not run; give at least 3"):
        generate_infinity(tiny_model, make_settings(SQUARE), Compose(SkipLast(2), method))


def test_compositions_inside_are_taken_apart(tiny_model: Infinity) -> None:
    nested = Compose(Compose(SkipLast(1)), BOTH)
    assert [part.name for part in nested.parts] == ["skip-last", "stepvar", "drop-guidance"]
    assert Compose(BOTH) == BOTH
    settings = make_settings(SQUARE)
    assert equal_everywhere(
        generate_infinity(tiny_model, settings, Compose()).logits,
        generate_infinity(tiny_model, settings, Dense()).logits,
    )


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((StepVAR(), Random()), "stepvar and random all act on tokens; keep one of them"),
        ((FastVAR(), StepVAR()), "fastvar and stepvar all act on tokens"),
        ((SkipLast(1), SkipLast(1)), "skip-last is given 2 times"),
        ((StepVAR, DropGuidance()), "is no method"),
    ],
)
def test_impossible_combinations(parts: tuple, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Compose(*parts)


def test_a_part_that_cannot_serve_the_plan_says_so_before_any_work(tiny_model: Infinity) -> None:
    method = Compose(StepVAR(branches="separate"), DropGuidance())
    with pytest.raises(UsageError, match="branches='separate'"):
        generate_infinity(tiny_model, make_settings(SQUARE, cfg_layers=(-2,)), method)


def test_names_stand_for_compositions() -> None:
    assert make_method("stepvar+skip-last", keep=0.4, count=2) == Compose(StepVAR(keep=0.4), SkipLast(2))
    named = make_method("stepvar+drop-guidance", **{"stepvar.last": 3, "drop-guidance.last": 2})
    assert named == Compose(StepVAR(last=3), DropGuidance(last=2))
    assert str(named) == "stepvar+drop-guidance"
    assert named.settings()["drop-guidance"]["last"] == 2
    assert make_method("fastvar:hart") == FastVAR(prune=(0.5, 0.75), skip=0, blocks_before=0, blocks_after=0)
    assert make_method("fastvar:infinity") == FastVAR()
    assert make_method("fastvar:hart", skip=1).skip == 1  # type: ignore[attr-defined]


def test_texts_stand_for_settings_of_parts() -> None:
    given = {"keep": "0.4", "last": None}
    parsed = parse_method("stepvar+drop-guidance", given, ["drop-guidance.last=2", "stepvar.structure-weight=0.5"])
    assert parsed == Compose(StepVAR(keep=0.4, structure_weight=0.5), DropGuidance(last=2))


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("stepvar+fast", {}, "method 'fast': unknown; choose one of stepvar"),
        ("stepvar+", {}, "method '': unknown"),
        ("fastvar:huge", {}, "preset 'huge': not one of method 'fastvar'; it has infinity, hart, infinity-star"),
        ("dense:huge", {}, "preset 'huge': not one of method 'dense'; it has none"),
        ("stepvar+drop-guidance", {"last": 2}, "say which: stepvar.last or drop-guidance.last"),
        ("stepvar+skip-last", {"prune": 2}, "prune: not a setting of method 'stepvar'"),
        ("stepvar+skip-last", {"random.keep": 1}, "'random' is not one of the methods given: stepvar, skip-last"),
    ],
)
def test_wrong_names_say_what_exists(name: str, settings: dict, said: str) -> None:
    with pytest.raises(UsageError) as error:
        make_method(name, **settings)
    assert said in str(error.value)


def test_only_what_edits_plans_may_join_another() -> None:
    editing: list[Method] = [Dense(), SkipLast(), DropGuidance()]
    assert not any(method.acts_on_tokens for method in editing)
    assert StepVAR().acts_on_tokens and FastVAR().acts_on_tokens
