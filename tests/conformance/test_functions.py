"""Single functions against what the reference implementations give for the same inputs, in float32.

The names of the stored tensors carry the settings, such as ``bit_sample_k900_p97_seed7``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.conformance.golden import Golden, find_goldens, read_tensors
from stepvar.conformance.hart import build_model
from stepvar.core.noise import StreamNoise
from stepvar.core.sampling import sample, truncate
from stepvar.core.tokens import Grid, scatter_tokens
from stepvar.kernels.norm import rotate
from stepvar.methods.cached_features import resample
from stepvar.methods.scores import distance_to_mean, top_tokens
from stepvar.models.hart import HART
from stepvar.models.hart.diffusion import NoiseSchedule
from stepvar.models.hart.rope import map_rotary, text_rotary
from stepvar.models.infinity import schedule_for
from stepvar.models.infinity.rope import rotary_table
from stepvar.models.infinity.tokenizer import resize
from stepvar.models.var.tokenizer import VQTokenizer, as_tokens, shrink
from tests.conformance.files import OWN

Names = dict[str, Tensor]


def read(name: str) -> Golden:
    (golden,) = find_goldens([OWN / "functions" / f"{name}.json"])
    return read_tensors(golden)


def check(golden: Golden, computed: Names, atol: float = 1e-5) -> None:
    """Everything computed is stored, and agrees; whole numbers to the last one."""
    for name, ours in computed.items():
        theirs = golden.tensors[name]
        if theirs.is_floating_point():
            torch.testing.assert_close(ours, theirs, rtol=0.0, atol=atol, check_dtype=False)
        else:
            assert torch.equal(ours.to(theirs), theirs), name


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


# Infinity and FastVAR


def test_rotary_tables_of_infinity() -> None:
    golden = read("units_infinity")
    schedule = schedule_for("1M", 1.5)

    def tables(head_dim: int) -> list[Tensor]:
        """Cosines and sines (2, N, head_dim / 2) of every scale."""
        frame = schedule.frame or schedule.grids[-1]
        return [torch.stack(rotary_table(grid, frame, head_dim)) for grid in schedule]

    computed = {"rope_1p5_hd64_first700": torch.cat(tables(64), dim=1)[:, :700]}
    for part in ("q", "k"):
        values = golden.tensor(f"rope_in_{part}")
        cos, sin = tables(values.shape[-1])[3]
        computed[f"rope_out_{part}_scale3"] = rotate(values, (cos, sin))
    check(golden, computed)


def test_sampling_of_bits() -> None:
    golden = read("units_infinity")
    logits, noise = golden.tensor("bit_logits"), StreamNoise(torch.Generator().manual_seed(7))
    sampled, cut = sample(logits, noise, 0, 900, 0.97), truncate(logits, 900, 0.97).isinf()
    check(golden, {"bit_sample_k900_p97_seed7": sampled, "bit_filtered_k900_p97": cut})


def test_resampling_of_infinity() -> None:
    golden = read("units_infinity")
    up, down = (resize(golden.tensor(n).squeeze(2), s) for n, s in (("lat_in", (21, 14)), ("lat_up_21x14", (9, 6))))
    unshuffled = F.pixel_unshuffle(golden.tensor("pixel_unshuffle_in"), 2)
    resized = {"lat_up_21x14": up.unsqueeze(2), "lat_21x14_down_9x6": down.unsqueeze(2)}
    check(golden, resized | {"pixel_unshuffle_out": unshuffled})


def test_selection_and_restoration_of_fastvar() -> None:
    golden = read("units_fastvar")
    x = golden.tensor("x")
    kept = top_tokens(distance_to_mean(x), golden.tensor("kept_sorted").shape[1])
    fresh = 2 * x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    past = resample(golden.tensor("cache_24x24"), Grid(1, 24, 24), Grid(1, 32, 32), "area")
    check(golden, {"kept_sorted": kept, "restored": scatter_tokens(past, kept, fresh)})


@pytest.mark.parametrize("side", [32, 40])
def test_fastvar_resizes_by_area(side: int) -> None:
    golden = read("units_fastvar")
    area = golden.tensor("area_in").flatten(2).transpose(1, 2)
    resized = resample(area, Grid(1, 24, 24), Grid(1, side, side), "area")
    check(golden, {f"area_24_to_{side}": resized.transpose(1, 2).unflatten(2, (side, side))})


# HART


@pytest.fixture(scope="module")
def modules() -> Golden:
    return read("hart_modules")


@pytest.fixture(scope="module")
def model(modules: Golden) -> HART:
    return build_model(modules)


def test_hart_decodes(modules: Golden, model: HART) -> None:
    check(modules, {"dec_out": model.tokenizer.decode(modules.tensor("dec_in"))}, atol=1e-3)


def test_hart_encodes_plain_and_hybrid(modules: Golden, model: HART) -> None:
    tokenizer, schedule = model.tokenizer, model.schedule()
    encoded = tokenizer.encode_latent(modules.tensor("img"))
    check(modules, {"enc_f": encoded})
    convolved = VQTokenizer(tokenizer.config)
    convolved.load_state_dict(tokenizer.state_dict())
    (plain, _), (hybrid, total) = (one.quantise(encoded, schedule) for one in (convolved, tokenizer))
    rest = encoded - (total - tokenizer.codes(hybrid[-1], schedule.grids[-1]))  # what the last scale is to say
    check(modules, {f"enc_idx_var{scale:02}": index for scale, index in enumerate(plain)})
    check(modules, {f"enc_idx_or_rest{scale:02}": index for scale, index in enumerate([*hybrid, as_tokens(rest)])})


def test_hart_adds_up_codes(modules: Golden, model: HART) -> None:
    tokenizer, schedule = model.tokenizer, model.schedule()
    total = torch.zeros_like(modules.tensor("dec_in"))
    for scale, (_, following) in enumerate(zip(schedule, schedule.grids[1:], strict=False)):
        total = total + tokenizer.contribution(modules.tensor(f"acc_h{scale}"), scale, schedule)
        check(modules, {f"acc_fhat{scale}": total, f"acc_next{scale}": shrink(total, following)})


def test_rotary_positions_of_hart(modules: Golden, model: HART) -> None:
    """The map's, at the coordinates given (those of the third scale after a text), and the text's from place 0."""
    places, on_map, in_text = (modules.tensor(name) for name in ("rope2d_pos", "rope2d_in", "rope1d_in"))
    schedule, head_dim = model.schedule(), on_map.shape[-1]
    start = places[:, 0, 0]  # of the first cell, whose own coordinates are 0
    turned = map_rotary(torch.arange(schedule[2].size)[None], schedule[2], schedule[-1], start, head_dim)
    words = text_rotary(torch.arange(in_text.shape[1])[None], head_dim)
    check(modules, {"rope2d_cos": turned[0][:, 0], "rope2d_sin": turned[1][:, 0]})
    check(modules, {"rope2d_out": rotate(on_map.transpose(1, 2), turned, halves=True).transpose(1, 2)})
    check(modules, {"rope1d_out": rotate(in_text.transpose(1, 2), words, halves=True).transpose(1, 2)})


def test_diffusion_network_of_hart(modules: Golden, model: HART) -> None:
    """Row by row, and guided, where both halves see the inputs of the first.

    The golden does not state how strong its guidance is: the number is read off it, and all else has to agree.
    """
    x, condition, times = (modules.tensor(name) for name in ("net_x", "net_c", "net_t"))
    net, half = model.transformer.diffloss.net, len(x) // 2
    embedded, embeddings = net.embed(condition).unsqueeze(1), net.time_embed(times)

    def run(x: Tensor) -> list[Tensor]:
        rows = [net(x[i, None, None], embedded[i : i + 1], embeddings[i]) for i in range(len(x))]
        return [torch.cat(part).squeeze(1) for part in zip(*rows, strict=True)]

    noise, variance = run(torch.cat([x[:half], x[:half]]))
    conditional, unconditional = noise.chunk(2)
    stored = modules.tensor("net_cfg_out")[:half, : x.shape[1]]
    t = ((stored - conditional) / (conditional - unconditional)).median()
    mixed = (1 + t) * conditional - t * unconditional
    guided = torch.cat([torch.cat([mixed, mixed]), variance], dim=-1)
    check(modules, {"net_out": torch.cat(run(x), dim=-1), "net_cfg_out": guided}, atol=2e-4)


@pytest.mark.parametrize("steps", [5, 8, 20])
def test_noise_schedule_of_hart(modules: Golden, steps: int) -> None:
    schedule = NoiseSchedule.of(steps)
    tables = {
        "betas": schedule.betas,
        "sqrt_recip_alphas_cumprod": schedule.clean,
        "sqrt_recipm1_alphas_cumprod": schedule.noisy,
        "posterior_mean_coef1": schedule.mean_clean,
        "posterior_mean_coef2": schedule.mean_noisy,
        "posterior_log_variance_clipped": schedule.log_variance,
    }
    computed = {f"sched{steps}_{name}": torch.from_numpy(values) for name, values in tables.items()}
    check(modules, computed | {f"sched{steps}_timesteps": torch.tensor(schedule.timesteps)})
