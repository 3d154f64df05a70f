"""Goldens agree where ours is right, and fail where anything is off; the general part and Infinity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stepvar.conformance import all_passed, hart, verify
from stepvar.conformance.golden import PACKAGED, find_goldens, read_tensors
from stepvar.conformance.run import KINDS
from stepvar.conformance.weights import INFINITY_RULE
from stepvar.errors import CheckpointError, UsageError
from tests.conformance.files import GOLDENS, OWN, copy, edit, put, run, tensors_of

SMALL = "inf_p1_sq"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The JSON file of a golden of one's own, to damage."""
    return copy(tmp_path, SMALL)


# Goldens that pass


GENERATION = ("tokens", "blocks", "hidden", "logits", "latents", "image")
BITS, INDICES = ("bits",), ("indices",)

COMPARED: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "inf_p0_sq": ("infinity", ("text", *GENERATION), ("bits", "pixels")),
    "inf_p0_sq_sampled": ("infinity", ("logits",), ("bits", "pixels")),
    "istar_video_encode": ("video tokenizer", ("hidden",), BITS),
    "star_d3_codes": ("star", ("hidden", "logits", "latents"), INDICES),
    "star_sampler": ("star", ("tokens", "hidden", "logits", "latents", "image"), INDICES),
    "switti_d3": ("switti", ("text", "text keys", *GENERATION), INDICES),
    "switti_ar_smooth": ("switti", ("text", "text keys", *GENERATION), INDICES),
    "var_d3": ("var", GENERATION, INDICES),
    "var_d3_sampled": ("var", ("logits",), INDICES),
    "vqvae_enc": ("vq tokenizer", ("tokens", "hidden", "latents", "image"), INDICES),
}
"""Of goldens that store much: their kind, and what of them is compared as numbers and one by one."""


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_passes_with_everything_compared_that_it_stores(name: str) -> None:
    result = run(name)
    assert (result.name, result.status, result.notes) == (name, "pass", ())
    assert result.errors or result.differing
    assert not any(result.differing.values())
    # Far inside the tolerances, which leave room for other machines.
    assert all(error < (1e-5 if group.startswith("text") else 2e-4) for group, error in result.errors.items())
    if name in COMPARED:
        kind, errors, differing = COMPARED[name]
        assert (result.kind, set(result.errors), set(result.differing)) == (kind, set(errors), set(differing))


def test_either_file_of_a_pair_names_the_golden() -> None:
    assert run(GOLDENS["var_d3_sampled"].with_suffix(".safetensors")).passed


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("varedit_006M_sq", ("text", "hidden", "logits")),
        ("var_d3", ("hidden", "logits", "image")),
        ("vqvae_enc", ("hidden", "tokens", "latents", "image")),
        ("star_d3_codes", ("hidden", "logits")),
        ("star_sampler", ("hidden", "logits", "image")),
        ("switti_d3", ("text", "text keys", "hidden", "logits", "image")),
    ],
)
def test_low_precision_compares_what_precedes_the_first_code(name: str, groups: tuple[str, ...]) -> None:
    result = run(name, dtype=torch.bfloat16)
    assert result.passed and set(result.errors) == set(groups) and not any(result.differing.values())


# Convolutions in float16 are very slow on a CPU, those in bfloat16 on one without AVX512 or the like.
SLOW_BFLOAT16 = [pytest.mark.slow] if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2") else []


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.bfloat16, marks=SLOW_BFLOAT16), pytest.param(torch.float16, marks=pytest.mark.slow)],
)
def test_low_precision_has_bounds_and_a_note(dtype: torch.dtype) -> None:
    generation, tokenizer = (run(name, dtype=dtype) for name in (SMALL, "bsqvae_enc_p1"))
    assert all_passed([generation, tokenizer])
    assert set(generation.errors) == {"text", "blocks", "hidden", "logits", "image"} and not generation.differing
    assert 1e-4 < generation.errors["logits"] < 0.5
    assert tokenizer.differing == {"bits": 0} and tokenizer.errors["latents"] < 1e-5
    assert "first scale" in generation.notes[0]


# The goldens of the package


def test_package_has_goldens_of_every_family() -> None:
    found = {kind.name for golden in find_goldens([PACKAGED]) for kind in KINDS if kind.fits(golden)}
    too_large = {"video tokenizer", "fastervar", "sparsevar", "skipvar", "scalekv", "sparvar", "switti"}
    assert found == {kind.name for kind in KINDS} - too_large


def test_stored_goldens_stay_small() -> None:
    packaged, own = (sum(path.stat().st_size for path in folder.rglob("*")) for folder in (PACKAGED, OWN))
    assert packaged <= 3 * 2**20 and packaged + own <= 15_000_000
    assert not {path.name for path in PACKAGED.iterdir()} & {path.name for path in OWN.iterdir()}


# Images that goldens store a corner of


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("inf_p1_sq", "img_f32_crop"),
        ("var_d3", "img_f32"),
        ("istar_t2i_cfg", "decoded"),
        ("hart_shared_topp_sampled", ""),
    ],
)
def test_corner_of_the_image_is_compared_in_every_family(tmp_path: Path, name: str, whole: str) -> None:
    path = copy(tmp_path, name)
    # The small golden of HART stores no image: ours has to do.
    stored = tensors_of(path) if whole else hart.run_generation(read_tensors(*find_goldens([path])))
    pixels = stored[whole or "image"]
    corner = pixels[..., :7, :9].contiguous()
    assert run(put(path, img_f32_crop=corner)).passed
    if whole == "decoded":  # a video of one frame, or an image without the axis of frames
        assert run(put(path, img_f32_crop=corner[:, :, 0].contiguous())).passed
    corner[..., -1, -1] += 0.1
    result = run(put(path, img_f32_crop=corner))
    assert result.status == "fail" and result.errors["image"] == pytest.approx(0.1, rel=1e-2)


# Goldens that must not pass


@pytest.mark.parametrize(
    ("golden", "name", "place", "group"),
    [
        (SMALL, "bits_3", (0, 0, 2, 1, 4), "bits"),
        ("istar_video_encode", "gt_bits010", (0, 1, 0, 1, 3), "bits"),
        ("var_d3", "idx_3", (1, 5), "indices"),
        ("star_sampler", "idx_5_3", (0, 5), "indices"),
    ],
)
def test_one_wrong_code_is_found(tmp_path: Path, golden: str, name: str, place: tuple[int, ...], group: str) -> None:
    path = copy(tmp_path, golden)
    codes = tensors_of(path)[name]
    codes[place] ^= 1
    result = run(put(path, **{name: codes}))
    assert (result.status, result.differing[group], result.notes) == ("fail", 1, (f"{group}: 1 differ",))


@pytest.mark.parametrize(
    ("golden", "name", "group"),
    [(SMALL, "hidden_2", "hidden"), (SMALL, "logits_6", "logits"), (SMALL, "summed_codes", "latents"),
     (SMALL, "blockout_s2_l1", "blocks"), (SMALL, "cond_BD", "text"), (SMALL, "ca_kv", "text"),
     (SMALL, "tokens_in_4", "tokens"), (SMALL, "img_f32_crop", "image"),
     ("star_sampler", "sampler_logits_4_5", "logits"), ("star_sampler", "logits_5_7", "logits"),
     ("star_sampler", "codes_5", "latents"), ("star_sampler", "hidden_3", "hidden"),
     ("switti_ar_smooth", "soft_3", "latents"), ("sparsevar_006M", "similarity_s6", "selection"),
     ("skipvar_skip_006M", "skip_scores", "scores")],
)  # fmt: skip
def test_wrong_number_is_found(tmp_path: Path, golden: str, name: str, group: str) -> None:
    path = copy(tmp_path, golden)
    tensor = tensors_of(path)[name]
    tensor.view(-1)[-1] += 0.01
    result = run(put(path, **{name: tensor}))
    assert result.status == "fail" and result.notes[0].startswith(f"{group}: error") and len(result.notes) == 1
    assert result.errors[group] == pytest.approx(0.01, rel=0.05)


def test_other_weights_are_found(tmp_path: Path) -> None:
    result = run(copy(tmp_path, SMALL, seed=1))
    assert result.status == "fail" and result.errors["logits"] > 0.1 and result.differing["bits"] > 100


@pytest.mark.parametrize(
    ("setting", "value"),
    [("cfg_list", 2.9), ("tau_list", 0.9), ("cfg_insertion_layer", [-1]), ("add_lvl_embeding_only_first_block", 0)],
)
def test_other_settings_are_found(tmp_path: Path, setting: str, value: Any) -> None:
    result = run(copy(tmp_path, SMALL, **{setting: value}))
    assert result.status == "fail" and result.errors.get("logits", 0.0) > 1e-3


def test_stored_but_not_computed_is_found(copied: Path) -> None:
    result = run(put(copied, hidden_7=torch.zeros(1)))
    assert (result.status, result.notes) == ("fail", ("stored but not computed: hidden_7",))


@pytest.mark.parametrize("change", ["renamed", "reshaped"])
def test_other_weight_names_are_found(copied: Path, change: str) -> None:
    names = json.loads(copied.read_text())["transformer_state_dict"]
    if change == "renamed":
        names["head.wight"] = names.pop("head.weight")
    else:
        names["head.weight"] = [[64, 127], "rule"]
    result = run(edit(copied, transformer_state_dict=names))
    assert result.status == "fail" and "does not fit the model" in result.notes[0] and "head.w" in result.notes[0]


def test_unpublished_schedule_is_found(copied: Path) -> None:
    result = run(edit(copied, scale_schedule=[[1, 1, 1], [1, 2, 2]]))
    assert result.status == "fail" and "not the published one" in result.notes[0]


def test_fastvar_settings_that_no_method_has_fail(tmp_path: Path) -> None:
    settings = json.loads(GOLDENS["fastvar_p0_sq"].read_text())["config"]["fastvar"]
    result = run(copy(tmp_path, "fastvar_p0_sq", fastvar=settings | {"cached_hw": [4, 4]}))
    assert result.status == "fail" and "not those of neighbouring late scales" in result.notes[0]


# Options that the stored goldens do not use


def test_negative_prompt_is_read_whatever_its_name(copied: Path) -> None:
    """A negative prompt equal to the null text gives what the golden stores; another one does not."""
    data = tensors_of(copied)
    null = INFINITY_RULE("cfg_uncond", (32, 256), 0)[:7].clone()
    for features, lens in (("neg_feats", torch.tensor([7])), ("neg_text", torch.tensor([0, 7], dtype=torch.int32))):
        save_file(data | {features: null, "neg_lens": lens}, copied.with_suffix(".safetensors"))
        assert run(copied).status == "pass"
    other = {"neg_feats": null.roll(1, dims=1), "neg_lens": torch.tensor([7])}
    save_file(data | other, copied.with_suffix(".safetensors"))
    assert run(copied).errors["logits"] > 1e-3
    save_file(data | {"neg_feats": null}, copied.with_suffix(".safetensors"))
    assert "neg_" in run(copied).notes[0]


# Kinds


def test_unknown_kind_fails_when_named_and_is_skipped_in_a_folder(tmp_path: Path) -> None:
    unknown = tmp_path / "tea.json"
    unknown.write_text(json.dumps({"config": {"leaves": 3}, "tensors": {"cup": ["float32", [1]]}}))
    save_file({"cup": torch.zeros(1)}, tmp_path / "tea.safetensors")
    named = run(unknown)
    assert (named.status, named.kind, named.passed) == ("not supported", "unknown", False)
    (skipped,) = verify([tmp_path])
    assert skipped.status == "skipped" and skipped.passed
    assert not all_passed([skipped])  # nothing was compared
    copy(tmp_path, "vqvae_enc")
    results = verify([tmp_path])
    assert [result.status for result in results] == ["skipped", "pass"] and all_passed(results)
    assert not all_passed([*results, named])


def test_kind_that_a_golden_states_decides(tmp_path: Path) -> None:
    """Goldens of other methods on Infinity have all settings of one of Infinity."""
    copy(tmp_path, "inf_p0_sq_sampled", kind="teavar")
    (result,) = verify([tmp_path])
    assert (result.status, result.kind, result.errors) == ("skipped", "teavar", {})
    assert run(copy(tmp_path, "inf_p0_sq_sampled", kind="infinity")).status == "pass"


def test_kind_is_that_of_the_content(copied: Path) -> None:
    renamed = copied.rename(copied.with_name("var_d3.json"))
    copied.with_suffix(".safetensors").rename(renamed.with_suffix(".safetensors"))
    result = run(renamed)
    assert (result.name, result.kind, result.status) == ("var_d3", "infinity", "pass")
    config = json.loads(renamed.read_text())["config"]
    assert run(edit(renamed, config={name: config[name] for name in config if name != "Ct5"})).kind != "infinity"


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
    shutil.copy(GOLDENS["inf_p0_sq"].with_suffix(".safetensors"), copied.with_suffix(".safetensors"))
    with pytest.raises(CheckpointError, match="does not belong together"):
        verify([copied])


def test_list_of_tensors_must_give_shapes(copied: Path) -> None:
    for entry in (5, [], {"dtype": "float32"}, ["float32", None]):
        edit(copied, tensors={"hidden_0": entry})
        with pytest.raises(CheckpointError, match="tensor hidden_0 of shape None"):
            verify([copied])


def test_garbage_is_no_golden(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError, match=r"list.json: is no golden"):
        verify([tmp_path / "list.json"])
    with pytest.raises(UsageError, match="holds no goldens"):
        verify([tmp_path])


def test_places_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match="device='tpu'"):
        verify(device="tpu")
    with pytest.raises(UsageError, match=r"dtype=torch.int8: must be float32, bfloat16 or float16"):
        verify(dtype=torch.int8)
