from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from stepvar.conformance import GoldenResult, all_passed, default_goldens, goldens, results_table, verify
from stepvar.conformance.goldens import Golden
from stepvar.conformance.results import compare
from stepvar.conformance.weights import fill_by_rule, rule_weight, star_weight
from stepvar.errors import CheckpointError, UsageError

GOLDENS = Path(__file__).parents[1] / "goldens"
NAMES = sorted(path.stem for path in GOLDENS.glob("*.safetensors"))
SMALL = "inf_p1_sq"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The JSON file of a golden of one's own, to damage."""
    for path in GOLDENS.glob(f"{SMALL}.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / f"{SMALL}.json"


def edit(path: Path, **tensors: torch.Tensor) -> None:
    """Replaces tensors of a golden."""
    data = path.with_suffix(".safetensors")
    save_file(load_file(data) | tensors, data)


def edit_json(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


# Weights


def test_weights_are_those_of_the_rule() -> None:
    """Values that the original rule gives for seed 0."""
    probes = {
        ("block_chunks.0.module.0.sa.mat_qkv.weight", (384, 128)): (0.025926485657691956, -0.0979088768362999),
        ("block_chunks.0.module.0.sa.scale_mul_1H11", (1, 2, 1, 1)): (2.263582706451416, 4.3610968589782715),
        ("text_norm.weight", (256,)): (1.0072811841964722, 1.0576149225234985),
        ("decoder.conv_in.conv.weight", (128, 16, 3, 3)): (0.06158256158232689, 0.055167533457279205),
        ("cfg_uncond", (32, 256)): (0.22110047936439514, 1.198512077331543),
        ("blocks.0.attn.q_bias", (128,)): (-0.012571947649121284, 0.021658778190612793),
    }
    for (name, shape), (first, last) in probes.items():
        weight = rule_weight(name, shape, 0)
        assert weight.dtype == torch.float32 and weight.shape == shape
        assert (weight.flatten()[0].item(), weight.flatten()[-1].item()) == (first, last), name


def test_weights_of_infinity_star_have_a_rule_of_their_own() -> None:
    for name, mean, spread in (
        ("blocks.0.attn.q_norm.weight", 1.0, 0.05),
        ("decoder.norm_out.conv_y.conv.bias", 1.0, 0.05),
        ("decoder.conv_in.conv.bias", 0.0, 0.05),
        ("head.bias", 0.0, 0.1),
        ("cfg_uncond", 0.0, 0.5),
    ):
        weight = star_weight(name, (4096,), 3)
        assert abs(float(weight.mean()) - mean) < spread / 10 and abs(float(weight.std()) / spread - 1) < 0.05, name
    assert abs(float(star_weight("word_embed.weight", (256, 64), 0).std()) / 0.5 - 1) < 0.02


@pytest.mark.parametrize(
    ("name", "shape", "mean", "deviation"),
    [
        ("block_chunks.0.module.1.ada_gss", (1, 1, 6, 999), 0.0, 0.3),
        ("lvl_embed.weight", (15, 400), 0.0, 0.5),
        ("text_proj_for_sos.ca.mat_q", (1, 2, 3000), 0.0, 1.0),
        ("head_nm.norm.weight", (5000,), 1.0, 0.05),
        ("head.bias", (5000,), 0.0, 0.05),
        ("head.weight", (100, 400), 0.0, 0.05),
        ("decoder.conv_in.conv.weight", (60, 25, 4, 4), 0.0, 0.05),
    ],
)
def test_ranges_of_weights(name: str, shape: tuple[int, ...], mean: float, deviation: float) -> None:
    weight = rule_weight(name, shape, 3)
    assert weight.mean().item() == pytest.approx(mean, abs=4 * deviation / weight.numel() ** 0.5)
    assert weight.std().item() == pytest.approx(deviation, rel=0.05)


def test_weights_depend_on_name_and_seed_only() -> None:
    weight = rule_weight("head.bias", (8,), 1)
    assert torch.equal(weight, rule_weight("head.bias", (8,), 1))
    assert not torch.equal(weight, rule_weight("head.bias", (8,), 2))
    assert not torch.equal(weight, rule_weight("heads.bias", (8,), 1))
    assert (rule_weight("sa.zero_k_bias", (8,), 1) == 0).all()


def test_module_is_filled_by_its_names() -> None:
    module = torch.nn.ModuleDict({"head": torch.nn.Linear(3, 4)})
    fill_by_rule(module, 5)
    assert torch.equal(module.get_parameter("head.weight"), rule_weight("head.weight", (4, 3), 5))


# Goldens that pass


@pytest.mark.parametrize("name", NAMES)
def test_golden_passes(name: str) -> None:
    (result,) = verify([GOLDENS / f"{name}.json"])
    assert (result.name, result.status, result.notes) == (name, "pass", ())
    assert result.differing and not any(result.differing.values())
    # Far inside the tolerances, which leave room for other machines.
    assert all(error < 2e-4 for error in result.errors.values())


def test_everything_stored_is_compared() -> None:
    (result,) = verify([GOLDENS / "inf_p0_sq.safetensors"])  # either file of the pair names it
    assert set(result.errors) == {"text", "tokens", "blocks", "hidden", "logits", "latents", "image"}
    assert set(result.differing) == {"bits", "pixels"}
    (result,) = verify([GOLDENS / "inf_p0_sq_sampled.json"])
    assert (set(result.errors), set(result.differing)) == ({"logits"}, {"bits", "pixels"})


# Convolutions in float16 are very slow on a CPU.
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_low_precision_compares_what_precedes_the_first_bit(dtype: torch.dtype) -> None:
    names = [GOLDENS / f"{name}.json" for name in (SMALL, "bsqvae_enc_p1", "units_infinity")]
    generation, tokenizer, units = verify(names, dtype=dtype)
    assert all_passed([generation, tokenizer, units])
    assert set(generation.errors) == {"text", "blocks", "hidden", "logits", "image"} and not generation.differing
    assert 1e-4 < generation.errors["logits"] < 0.5
    assert tokenizer.differing == {"bits": 0} and tokenizer.errors["latents"] < 1e-5
    assert "first scale" in generation.notes[0] and "float32" in units.notes[0]


# Goldens that must not pass


def test_flipped_bit_is_found(copied: Path) -> None:
    bits = load_file(copied.with_suffix(".safetensors"))["bits_3"]
    bits[0, 0, 2, 1, 4] ^= 1
    edit(copied, bits_3=bits)
    (result,) = verify([copied])
    assert (result.status, result.differing["bits"], result.notes) == ("fail", 1, ("bits: 1 differ",))


def test_pixels_may_be_one_level_apart() -> None:
    stored = torch.tensor([0, 100, 200, 255, 50], dtype=torch.uint8)
    golden = Golden(Path("g.json"), {}, True, {"img_u8_bgr": stored})
    near = torch.tensor([1, 99, 200, 254, 51], dtype=torch.uint8)
    assert compare(golden, "kind", {"img_u8_bgr": near}, {}).status == "pass"
    far = torch.tensor([255, 102, 200, 0, 51], dtype=torch.uint8)  # bytes must not wrap around
    result = compare(golden, "kind", {"img_u8_bgr": far}, {})
    assert (result.status, result.differing) == ("fail", {"pixels": 3})


def test_worst_error_of_a_group_decides() -> None:
    stored = {f"logits_{index}": torch.zeros(2, 3) for index in range(3)}
    golden = Golden(Path("g.json"), {}, True, stored)
    ours = {"logits_0": torch.full((2, 3), 0.1), "logits_1": torch.zeros(2, 3), "logits_2": torch.full((2, 3), -0.3)}
    result = compare(golden, "kind", ours, {"logits": 0.2})
    assert result.status == "fail" and result.errors == {"logits": pytest.approx(0.3)}
    assert compare(golden, "kind", ours, {"logits": 0.4}).status == "pass"
    for name in ours:  # a NaN is worst, wherever it comes
        broken = compare(golden, "kind", ours | {name: torch.full((2, 3), math.nan)}, {"logits": 0.4})
        assert broken.status == "fail" and math.isnan(broken.errors["logits"])
    shaped = compare(golden, "kind", ours | {"logits_1": torch.zeros(3, 2)}, {"logits": 0.4})
    assert shaped.notes == ("logits_1: shape (3, 2) instead of (2, 3)",)
    assert compare(golden, "kind", {}, {}).notes == ("nothing could be compared",)


def test_unconditional_rows_that_one_side_lacks_are_left_out() -> None:
    golden = Golden(Path("g.json"), {}, True, {"blockout_s2_l0": torch.tensor([[1.0], [2.0], [9.0], [9.0]])})
    assert compare(golden, "kind", {"blockout_s2_l0": torch.tensor([[1.0], [2.0]])}, {"blocks": 0.0}).passed
    assert not compare(golden, "kind", {"blockout_s2_l0": torch.tensor([[1.0], [3.0]])}, {"blocks": 0.0}).passed
    assert not compare(golden, "kind", {"blockout_s2_l0": torch.tensor([[1.0]])}, {"blocks": 0.0}).passed


@pytest.mark.parametrize(
    ("name", "group"),
    [("hidden_2", "hidden"), ("logits_6", "logits"), ("summed_codes", "latents"), ("blockout_s2_l1", "blocks"),
     ("cond_BD", "text"), ("ca_kv", "text"), ("tokens_in_4", "tokens"), ("img_f32_crop", "image")],
)  # fmt: skip
def test_wrong_number_is_found(copied: Path, name: str, group: str) -> None:
    tensor = load_file(copied.with_suffix(".safetensors"))[name]
    tensor.view(-1)[-1] += 0.01
    edit(copied, **{name: tensor})
    (result,) = verify([copied])
    assert result.status == "fail" and result.notes[0].startswith(f"{group}: error") and len(result.notes) == 1
    assert result.errors[group] == pytest.approx(0.01, rel=0.05)


def test_other_weights_are_found(copied: Path) -> None:
    config = json.loads(copied.read_text())["config"]
    edit_json(copied, config=config | {"seed": 1})
    (result,) = verify([copied])
    assert result.status == "fail" and result.errors["logits"] > 0.1 and result.differing["bits"] > 100


@pytest.mark.parametrize(
    ("setting", "value"),
    [("cfg_list", 2.9), ("tau_list", 0.9), ("cfg_insertion_layer", [-1]), ("add_lvl_embeding_only_first_block", 0)],
)
def test_other_settings_are_found(copied: Path, setting: str, value: Any) -> None:
    config = json.loads(copied.read_text())["config"]
    edit_json(copied, config=config | {setting: value})
    (result,) = verify([copied])
    assert result.status == "fail" and result.errors.get("logits", 0.0) > 1e-3


def test_stored_but_not_computed_is_found(copied: Path) -> None:
    about = json.loads(copied.read_text())
    edit(copied, hidden_7=torch.zeros(1))
    edit_json(copied, tensors=about["tensors"] | {"hidden_7": ["float32", [1]]})
    (result,) = verify([copied])
    assert (result.status, result.notes) == ("fail", ("stored but not computed: hidden_7",))


@pytest.mark.parametrize("change", ["renamed", "reshaped"])
def test_other_weight_names_are_found(copied: Path, change: str) -> None:
    names = json.loads(copied.read_text())["transformer_state_dict"]
    if change == "renamed":
        names["head.wight"] = names.pop("head.weight")
    else:
        names["head.weight"] = [[64, 127], "rule"]
    edit_json(copied, transformer_state_dict=names)
    (result,) = verify([copied])
    assert result.status == "fail" and "does not fit the model" in result.notes[0] and "head.w" in result.notes[0]


def test_unpublished_schedule_is_found(copied: Path) -> None:
    edit_json(copied, scale_schedule=[[1, 1, 1], [1, 2, 2]])
    (result,) = verify([copied])
    assert result.status == "fail" and "not the published one" in result.notes[0]


# Options that the stored goldens do not use


def test_negative_prompt_is_read_whatever_its_name(copied: Path) -> None:
    """A negative prompt equal to the null text gives what the golden stores; another one does not."""
    data = load_file(copied.with_suffix(".safetensors"))
    null = rule_weight("cfg_uncond", (32, 256), 0)[:7].clone()
    for features, lens in (("neg_feats", torch.tensor([7])), ("neg_text", torch.tensor([0, 7], dtype=torch.int32))):
        save_file(data | {features: null, "neg_lens": lens}, copied.with_suffix(".safetensors"))
        assert verify([copied])[0].status == "pass"
    other = {"neg_feats": null.roll(1, dims=1), "neg_lens": torch.tensor([7])}
    save_file(data | other, copied.with_suffix(".safetensors"))
    assert verify([copied])[0].errors["logits"] > 1e-3
    save_file(data | {"neg_feats": null}, copied.with_suffix(".safetensors"))
    assert "neg_" in verify([copied])[0].notes[0]


# Files


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_truncated_file_is_named(copied: Path, suffix: str) -> None:
    path = copied.with_suffix(suffix)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=f"{SMALL}{suffix}.*copy the golden again"):
        verify([copied])
    with pytest.raises(CheckpointError, match=f"{SMALL}{suffix}"):
        verify([copied.parent])


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_missing_file_is_named(copied: Path, suffix: str) -> None:
    copied.with_suffix(suffix).unlink()
    with pytest.raises(CheckpointError, match=f"{SMALL}{suffix}: missing"):
        verify([copied])


def test_pair_must_belong_together(copied: Path) -> None:
    shutil.copy(GOLDENS / "inf_p0_sq.safetensors", copied.with_suffix(".safetensors"))
    with pytest.raises(CheckpointError, match="does not belong together"):
        verify([copied])


def test_list_of_tensors_must_give_shapes(copied: Path) -> None:
    for entry in (5, [], {"dtype": "float32"}, ["float32", None]):
        edit_json(copied, tensors={"hidden_0": entry})
        with pytest.raises(CheckpointError, match="tensor hidden_0 of shape None"):
            verify([copied])


def test_garbage_is_no_golden(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError, match=r"list.json: is no golden"):
        verify([tmp_path / "list.json"])
    with pytest.raises(UsageError, match="holds no goldens"):
        verify([tmp_path])


def write_unknown(folder: Path) -> Path:
    """A golden of a kind that there will never be."""
    path = folder / "tea.json"
    path.write_text(json.dumps({"config": {"leaves": 3}, "tensors": {"cup": ["float32", [1]]}}))
    save_file({"cup": torch.zeros(1)}, folder / "tea.safetensors")
    return path


def test_unknown_kind_fails_when_named_and_is_skipped_in_a_folder(tmp_path: Path) -> None:
    unknown = write_unknown(tmp_path)
    (named,) = verify([unknown])
    assert named.status == "not supported" and not named.passed
    (skipped,) = verify([tmp_path])
    assert skipped.status == "skipped" and skipped.passed
    assert not all_passed([skipped])  # nothing was compared
    for suffix in (".json", ".safetensors"):
        shutil.copy(GOLDENS / f"units_infinity{suffix}", tmp_path)
    results = verify([tmp_path])
    assert [result.status for result in results] == ["skipped", "pass"] and all_passed(results)
    assert not all_passed([*results, named])


def test_kind_is_that_of_the_content(copied: Path) -> None:
    renamed = copied.with_name("var_d3.json")
    copied.rename(renamed)
    copied.with_suffix(".safetensors").rename(renamed.with_suffix(".safetensors"))
    (result,) = verify([renamed])
    assert (result.name, result.kind, result.status) == ("var_d3", "infinity", "pass")
    config = json.loads(renamed.read_text())["config"]
    edit_json(renamed, config={name: value for name, value in config.items() if name != "Ct5"})
    assert verify([renamed])[0].kind != "infinity"


def test_fastvar_settings_that_no_method_has_fail(tmp_path: Path) -> None:
    for suffix in (".json", ".safetensors"):
        shutil.copy(GOLDENS / f"fastvar_p0_sq{suffix}", tmp_path)
    golden = tmp_path / "fastvar_p0_sq.json"
    config = json.loads(golden.read_text())["config"]
    edit_json(golden, config=config | {"fastvar": config["fastvar"] | {"cached_hw": [4, 4]}})
    (result,) = verify([golden])
    assert result.status == "fail" and "not those of neighbouring late scales" in result.notes[0]


def test_default_goldens_are_those_of_the_tests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_goldens().resolve() == GOLDENS.resolve()
    monkeypatch.setattr(goldens, "__file__", str(tmp_path / "site-packages/stepvar/conformance/goldens.py"))
    with pytest.raises(UsageError, match="installed without its goldens; run from a checkout"):
        verify()


def test_stored_goldens_stay_small() -> None:
    assert sum(path.stat().st_size for path in GOLDENS.rglob("*") if path.is_file()) <= 12 * 2**20


def test_places_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match="device='tpu'"):
        verify(device="tpu")
    with pytest.raises(UsageError, match=r"dtype=torch.int8: must be float32, bfloat16 or float16"):
        verify(dtype=torch.int8)


# Showing


def test_table_shows_errors_counts_and_notes() -> None:
    results = [
        GoldenResult("a", Path("a.json"), "infinity", "pass", {"logits": 1.2e-5}, {"bits": 0}),
        GoldenResult("b", Path("b.json"), "bit tokenizer", "fail", {"image": 0.5}, {"bits": 17}, ("image: too far",)),
        GoldenResult("c", Path("c.json"), "unknown", "skipped", notes=("no runner",)),
    ]
    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(results_table(results))
    text = capture.get()
    for part in ("1.2e-05", "5.0e-01", "17", "b: image: too far", "skipped", "logits", "bits"):
        assert part in text
    assert "no runner" not in text and "hidden" not in text
