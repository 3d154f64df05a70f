"""The cases: plain data, by name. They hold no name of the package's insides; ``adapter.py`` knows what to do."""

from __future__ import annotations

from typing import Any

FAMILIES = ("infinity", "var", "hart", "infinity-star")

IMAGES_ONLY = ("skipvar", "lazyvar", "scalekv", "sparvar")
"""Methods that refuse videos."""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    # Settings for methods whose defaults speak of more scales and blocks than the tiny models have.
    "dense": ("dense", {}),
    "stepvar": ("stepvar", {}),
    "stepvar:hart": ("stepvar:hart", {}),
    "stepvar-plus": ("stepvar-plus", {}),
    "fastvar": ("fastvar", {"prune": [0.5], "skip": 1, "blocks_before": 1, "blocks_after": 1}),
    "fastvar:hart": ("fastvar:hart", {}),
    "fastervar": ("fastervar", {"skip": 1, "unconditional": 2}),
    "fastervar-released": ("fastervar:infinity-released", {"skip": 0, "unconditional": 0}),
    "faststar": ("faststar", {"prune": [0.3, 0.6]}),
    "sparsevar": ("sparsevar", {}),
    "skipvar": ("skipvar", {}),
    "lazyvar": ("lazyvar", {"keep": [0.4, 0.3]}),
    "scalekv": ("scalekv", {"budget": 0.3, "window": 4}),
    "sparvar": ("sparvar", {"group": 8, "multiple": 4, "sink": 2, "block": 8}),
    "high-pass": ("high-pass", {}),
    "pca": ("pca", {}),
    "l2-norm": ("l2-norm", {}),
    "mean-distance": ("mean-distance", {}),
    "latent-change": ("latent-change", {}),
    "random": ("random", {}),
    "skip-last": ("skip-last", {}),
    "drop-guidance": ("drop-guidance", {}),
    "coverage": ("coverage", {}),
    "blend": ("blend", {}),
    "taper": ("taper", {"last": 2}),
    "stepvar+drop-guidance": ("stepvar+drop-guidance", {"stepvar.keep": 0.4, "drop-guidance.last": 2}),
    "stepvar+drop-guidance+skip-last": (
        "stepvar+drop-guidance+skip-last",
        {"stepvar.keep": 0.4, "stepvar.last": 2, "drop-guidance.last": 2},
    ),
    # Settings of the others.
    "fastvar-unpruned-scales": ("fastvar", {"prune": [0.3, 0.6], "skip": 0, "blocks_before": 1, "blocks_after": 0}),
    "mean-distance-as-fastvar": (
        "mean-distance",
        {"scope": "sublayer", "propagate": "update", "restore": "cached", "branches": "separate"},
    ),
    "sparsevar-blocks": ("sparsevar", {"blocks": [0, 1], "keep": 0.3}),
    "sparsevar-reproduction": ("sparsevar:reproduction", {"threshold": 0.97}),
    "pca-iterations": ("pca", {"power_iterations": 2}),
    "random-seed": ("random", {"seed": 7, "keep": 0.3}),
    "skip-two": ("skip-last", {"count": 2}),
    "drop-conditional": ("drop-guidance", {"branch": "unconditional", "last": 2}),
    "coverage-all": ("coverage", {"cover": 1.0, "keep": 0.3}),
    "taper-none": ("taper", {"taper": 0.0, "last": 2}),
    "taper-all": ("taper", {"taper": 1.0, "last": 2, "keep": 0.4}),
    # Settings of StepVAR, most of which all pruning methods share.
    "keep-tuple": ("stepvar", {"keep": [0.7, 0.4]}),
    "keep-all": ("stepvar", {"keep": 1.0}),
    "last": ("stepvar", {"keep": 0.3, "last": 2}),
    "block": ("stepvar", {"scope": "block"}),
    "block-update": ("stepvar", {"scope": "block", "propagate": "update"}),
    "sublayer": ("stepvar", {"scope": "sublayer"}),
    "sublayer-update": ("stepvar", {"scope": "sublayer", "propagate": "update"}),
    "update": ("stepvar", {"propagate": "update"}),
    "restore-blend": ("stepvar", {"restore": "blend"}),
    "restore-blend-two": ("stepvar", {"restore": ["blend", {"neighbours": 2}]}),
    "restore-anchors": ("stepvar", {"restore": "anchors"}),
    "restore-anchors-two": ("stepvar", {"restore": ["anchors", {"stride": 2}]}),
    "restore-cached": ("stepvar", {"restore": "cached"}),
    "restore-cached-update": ("stepvar", {"restore": "cached", "propagate": "update"}),
    "restore-cached-block": ("stepvar", {"restore": "cached", "scope": "block"}),
    "restore-cached-sublayer": ("stepvar", {"restore": "cached", "scope": "sublayer", "propagate": "update"}),
    "separate": ("stepvar", {"branches": "separate", "structure_weight": 1.0, "keep": 0.2}),
    "separate-sublayer": ("stepvar", {"branches": "separate", "scope": "sublayer", "restore": "blend"}),
    "blocks-before": ("stepvar", {"blocks_before": 1}),
    "blocks-after": ("stepvar", {"blocks_after": 1}),
    "blocks-both": ("stepvar", {"blocks_before": 1, "blocks_after": 1, "propagate": "update"}),
    "structure-none": ("stepvar", {"structure_weight": 0.0}),
    "structure-one": ("stepvar", {"structure_weight": 1.0}),
    "norm-mean": ("stepvar", {"normalisation": "mean", "structure_weight": 1.0, "keep": 0.3}),
    "norm-none": ("stepvar", {"normalisation": "none", "structure_weight": 1.0, "keep": 0.3}),
    "norm-max": ("stepvar", {"normalisation": "max", "structure_weight": 1.0, "keep": 0.3}),
    "norm-zscore": ("stepvar", {"normalisation": "zscore", "structure_weight": 1.0, "keep": 0.3}),
    "iterations": ("stepvar", {"power_iterations": 1, "structure_weight": 2.0}),
}

VIDEO_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "frames": ("stepvar", {"selection": "frame"}),
    "frames-coverage": ("coverage", {"selection": "frame", "restore": "blend", "temporal_weight": 2.5}),
    "frames-anchors": ("stepvar", {"selection": "frame", "restore": "anchors"}),
    "coverage-time": ("coverage", {"temporal_weight": 0.1, "keep": 0.2}),
    "temporal-far": ("stepvar", {"temporal_weight": 1000}),
    "temporal-near": ("stepvar", {"temporal_weight": 0.0, "restore": "blend"}),
    "recalled-pruned": ("stepvar", {"recalled": "pruned"}),
    "recalled-pruned-cached": ("stepvar", {"recalled": "pruned", "restore": "cached", "propagate": "update"}),
    "recalled-pruned-separate": ("stepvar", {"recalled": "pruned", "branches": "separate", "keep": 0.2}),
    "latent-change-recalled": ("latent-change", {"recalled": "pruned", "last": 1}),
}

SAMPLING: dict[str, dict[str, Any]] = {
    "plain": {"guidance": 1.0},
    "unconditional": {"guidance": 0.0},
    "sequence": {"guidance": [1.0, 3.0, 2.5, 1.0, 4.0]},
    "alternating": {"guidance": [0.0, 3.0, 1.0]},
    "inside": {"guidance_at": [0, -2]},
    "inside-only": {"guidance_at": [-1]},
    "projected": {"mix": "projected"},
    "truncated": {"top_k": 3, "top_p": 0.9},
    "top-k-each": {"top_k": [1, 0, 5]},
    "likeliest": {"top_k": 1},
    "temperature": {"temperature": [0.5, 1.0, 1.7]},
    "stream": {"stream": True, "seeds": [11]},
    "other-seed": {"seeds": [12345]},
    "batch": {"places": [0, 1], "seeds": [4, 9]},
    "batch-stream": {"places": [0, 1], "seeds": [4], "stream": True},
    "half": {"dtype": "bfloat16"},
}

EXTRA: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    # By family: a name, the method, and how it is sampled.
    "infinity": {
        "wide": ("dense", {"shape": "wide"}),
        "wide-stepvar": ("stepvar", {"shape": "wide"}),
        "wide-fastvar": ("fastvar", {"shape": "wide", "places": [0, 1], "seeds": [4, 9]}),
        "wide-coverage": ("coverage", {"shape": "wide"}),
        "wide-sparsevar": ("sparsevar", {"shape": "wide"}),
        "tall": ("dense", {"shape": "tall"}),
        "tall-stepvar": ("restore-anchors", {"shape": "tall"}),
        "negative": ("stepvar", {"negative": True}),
        "inside-sublayer": ("sublayer", {"guidance_at": [0, -2]}),
        "inside-fastvar": ("fastvar", {"guidance_at": [0, -2]}),
    },
    "var": {
        "smooth": ("dense", {"smooth": True}),
        "smooth-stepvar": ("stepvar", {"smooth": True, "top_k": 5}),
        "smooth-stream": ("dense", {"smooth": True, "stream": True, "top_k": 4}),
        "smooth-batch": ("fastvar", {"smooth": True, "places": [0, 1], "seeds": [4, 9]}),
    },
    "hart": {
        "tall": ("dense", {"shape": "tall"}),
        "tall-stepvar": ("stepvar", {"shape": "tall"}),
        "smooth": ("dense", {"smooth": True}),
        "smooth-stepvar": ("stepvar", {"smooth": True, "top_p": 0.9}),
    },
    "infinity-star": {
        "wide": ("dense", {"shape": "wide"}),
        "wide-stepvar": ("stepvar", {"shape": "wide"}),
        "wide-recalled": ("recalled-pruned", {"shape": "wide"}),
        "wide-cached": ("recalled-pruned-cached", {"shape": "wide"}),
        "wide-fastvar": ("fastvar", {"shape": "wide"}),
        "wide-drop-guidance": ("drop-guidance", {"shape": "wide"}),
        "wide-projected": ("stepvar", {"shape": "wide", "mix": "projected", "temperature": [1.0, 0.4]}),
        "negative": ("stepvar", {"negative": True}),
    },
}


def generations() -> dict[str, dict[str, Any]]:
    """Generations with the tiny models, by name: arguments of ``adapter.run``."""
    found: dict[str, dict[str, Any]] = {}
    for family in FAMILIES:
        known = METHODS | (VIDEO_METHODS if family == "infinity-star" else {})
        for name, (method, settings) in known.items():
            if method in IMAGES_ONLY and family == "infinity-star":
                continue
            found[f"{family}/{name}"] = {"family": family, "method": method, "settings": settings}
        rows = {f"{kind}-{name}": (name, more) for kind, more in SAMPLING.items() for name in ("dense", "stepvar")}
        rows |= {"plain-fastvar": ("fastvar", SAMPLING["plain"]), "batch-fastvar": ("fastvar", SAMPLING["batch"])}
        for name, (row, more) in (rows | EXTRA[family]).items():
            method, settings = known[row]
            found[f"{family}/sampling/{name}"] = {"family": family, "method": method, "settings": settings, **more}
    return found


SCENE, CLIP = "a large red circle on grass", "a large red ball moving left quickly on grass"

CALLS: dict[str, dict[str, Any]] = {
    # With the embedded models: arguments of ``adapter.call``.
    "scenes/dense": {"name": "scenes", "prompt": SCENE, "seed": 0},
    "scenes/stepvar": {"name": "scenes", "prompt": SCENE, "method": "stepvar", "seed": 0},
    "scenes/fastvar": {"name": "scenes", "prompt": SCENE, "method": "fastvar", "seed": 0},
    "scenes/drop-guidance": {"name": "scenes", "prompt": SCENE, "method": "drop-guidance", "seed": 0},
    "scenes/two": {
        "name": "scenes",
        "prompt": [SCENE, "a small blue star on snow"],
        "negative_prompt": "a green square on sand",
        "method": "stepvar+drop-guidance",
        "seed": [3, 8],
        "resolution": "0.06M",
        "aspect_ratio": "3:2",
        "top_k": 1,
        "guidance_at": [0, -2],
        "num_images_per_prompt": 1,
    },
    "scenes/tiles": {"name": "scenes", "prompt": SCENE, "seed": 1, "resolution": "0.06M", "tile": 8},
    "scenes-video/dense": {"name": "scenes-video", "prompt": CLIP, "seed": 0},
    "scenes-video/stepvar": {"name": "scenes-video", "prompt": CLIP, "method": "stepvar", "seed": 0},
    "scenes-video/still": {"name": "scenes-video", "prompt": CLIP, "method": "fastvar", "seed": 0, "seconds": 0},
    # Videos that go on from something.
    "tiny-star/dense": {"name": "tiny-star", "prompt": "a red ball rolling left", "seed": 1},
    "tiny-star/image": {
        "name": "tiny-star",
        "prompt": "a red ball",
        "method": "stepvar",
        "seed": 2,
        "seconds": 3,
        "image": True,
    },
    "tiny-star/video": {"name": "tiny-star", "prompt": "a boat", "method": "drop-guidance", "seed": 3, "video": True},
    "tiny-teller/story": {"name": "tiny-teller", "prompt": "a boat", "method": "stepvar", "seed": 1, "story": True},
}

CALL_ERRORS: dict[str, tuple[str, dict[str, Any]]] = {
    # A model, and the arguments of a call.
    "no prompt": ("scenes", {}),
    "empty prompt": ("scenes", {"prompt": " "}),
    "unknown words": ("scenes", {"prompt": "hello"}),
    "class of a text model": ("scenes", {"class_labels": 3}),
    "bad seed": ("scenes", {"prompt": SCENE, "seed": -1}),
    "seeds of another batch": ("scenes", {"prompt": SCENE, "seed": [1, 2]}),
    "wrong aspect ratio": ("scenes", {"prompt": SCENE, "aspect_ratio": "wide"}),
    "unknown resolution": ("scenes", {"prompt": SCENE, "resolution": "9M"}),
    "guidance place out of range": ("scenes", {"prompt": SCENE, "guidance_at": [0, -8]}),
    "unknown guidance": ("scenes", {"prompt": SCENE, "guidance": "plain"}),
    "top p": ("scenes", {"prompt": SCENE, "top_p": 1}),
    "temperatures": ("scenes", {"prompt": SCENE, "temperature": [1.0, 1.0]}),
    "smooth codes of bits": ("scenes", {"prompt": SCENE, "more_smooth": True}),
    "seconds of a picture": ("scenes", {"prompt": SCENE, "seconds": 2}),
    "separate branches inside": (
        "scenes",
        {"prompt": SCENE, "method": ["stepvar", {"branches": "separate"}], "guidance_at": [-1]},
    ),
    "too many scales skipped": ("scenes", {"prompt": SCENE, "method": ["skip-last", {"count": 10}]}),
    "nothing dense to cache": (
        "tiny-star",
        {"prompt": "a boat", "method": ["stepvar", {"last": 3, "restore": "cached"}]},
    ),
    "a first scale without one before": ("tiny-star", {"prompt": "a boat", "method": ["latent-change", {"last": 3}]}),
    "missing video": ("tiny-star", {"prompt": "a boat", "video": "gone.mp4"}),
    "seconds": ("scenes-video", {"prompt": CLIP, "seconds": 7}),
    "story of a model without": ("scenes-video", {"prompt": CLIP, "story": 1}),
}

METHOD_ERRORS: dict[str, tuple[str, dict[str, Any]]] = {
    "unknown method": ("fast", {}),
    "unknown preset": ("stepvar:paper", {}),
    "preset of a method without": ("dense:paper", {}),
    "unknown setting": ("stepvar", {"ratio": 0.5}),
    "setting of several": ("stepvar+drop-guidance", {"last": 2}),
    "setting of another": ("stepvar", {"fastvar.skip": 2}),
    "bad keep": ("stepvar", {"keep": 0}),
    "bad keep in a tuple": ("stepvar", {"keep": [0.5, 2]}),
    "bad last": ("stepvar", {"last": 0}),
    "unknown scope": ("stepvar", {"scope": "tree"}),
    "unknown normalisation": ("stepvar", {"normalisation": "median"}),
    "bad prune": ("fastvar", {"prune": [1.0]}),
    "unknown branch": ("drop-guidance", {"branch": "both"}),
    "anchors twice": ("coverage", {"restore": "anchors"}),
}

COMPOSITION_ERRORS: dict[str, list[str]] = {
    "two act on tokens": ["stepvar", "fastvar"],
    "one given twice": ["drop-guidance", "drop-guidance"],
}

LOADING_ERRORS: dict[str, dict[str, Any]] = {
    "unknown model": {"files": {}, "name": "nope"},
    "unknown variant": {"files": {}, "name": "FoundationVision/var", "variant": "d17"},
    "a folder without a model": {"files": {"notes.txt": "nothing"}, "name": "model"},
    "missing checkpoint": {
        "files": {
            "config.json": '{"family": "infinity", "model": {"depth": 2, "width": 64, "heads": 2, "block_chunks": 2}}'
        },
        "name": "model",
    },
    "unknown family": {"files": {"config.json": '{"family": "other"}'}, "name": "model"},
    "broken configuration": {"files": {"config.json": "[]"}, "name": "model"},
}

COMMAND_ERRORS: dict[str, list[str]] = {
    # Those that the parser words itself differ from version to version.
    "command: unknown method": ["generate", SCENE, "--method", "nope"],
    "command: bad keep": ["generate", SCENE, "--keep", "1.5"],
    "command: unknown setting": ["generate", SCENE, "--set", "nope=1"],
    "command: unknown model": ["generate", SCENE, "--model", "nope"],
    "command: empty prompt": ["generate", " "],
    "command: no folder for the result": ["generate", SCENE, "--out", "gone/scene.png"],
    "command: missing file": ["info", "gone.png"],
}
