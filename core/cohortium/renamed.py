"""Old names of keys, options, commands and variables, with the new names.

No release had the old names. The author of an earlier study reads one sentence with the new name.
"""

from __future__ import annotations

from types import MappingProxyType

KEYS = MappingProxyType(
    {
        "against": ("noise",),
        "average": ("average_last_fraction",),
        "beside": ("extra_features",),
        "bound": ("max_abs_value",),
        "caller": ("client_user",),
        "cells": ("match",),
        "centre": ("center_on",),
        "classes": ("task",),
        "clip": ("clip_norm",),
        "cohort": ("cohort_size",),
        "colluding": ("max_colluding", "assumed_colluding"),
        "contributors": ("min_contributors",),
        "copies": ("augmentation_multiplicity",),
        "data": ("dataset_id",),
        "deadline": ("reply_timeout",),
        "directory": ("key_directory",),
        "dropout": ("max_dropout_rate",),
        "epochs": ("local_epochs",),
        "examples": ("declared_examples",),
        "floor": ("variance_floor",),
        "gathering": ("connect_timeout",),
        "height": ("size",),
        "holdout": ("holdout_fraction",),
        "honest": ("min_honest_contributors",),
        "identity": ("signing_key",),
        "learn": ("trainable",),
        "local": ("allowed_local_values",),
        "min_sites": ("min_contributors",),
        "moment_floor": ("private_variance_floor",),
        "moments": ("private_whitening",),
        "number": ("id",),
        "options": ("optimizer_options",),
        "plugins": ("allowed_plugins",),
        "poll": ("poll_interval",),
        "prelude": ("statistics_rounds",),
        "rehearsal": ("insecure_rehearsal",),
        "rounding": ("rounding_slack",),
        "runs": ("runs_dir",),
        "security": ("security_bits",),
        "seeded_noise": ("insecure_seeded_secrets",),
        "server_options": ("server_optimizer_options",),
        "shares": ("num_shares",),
        "sites": ("min_cohort_size",),
        "states": ("state_dir",),
        "step": ("quantization_step",),
        "steps": ("local_steps",),
        "threshold": ("min_reconstruction_threshold", "reconstruction_threshold"),
        "turns": ("rotations",),
        "where": ("override",),
        "width": ("size",),
    }
)
"""New names of TOML keys, by the old name.

There is one for each table that had the old one.
"""

VALUES = MappingProxyType(
    {"noise": '"everyone" is "local" now, and "coordinator" is "distributed"'}
)
"""New names of a key's values, by the key's new name."""

OPTIONS = MappingProxyType(
    {
        ("run", "--observe"): "--observer",
        ("resume", "--observe"): "--observer",
        ("audit", "--releases"): "--samples",
        ("export", "--to"): "--out",
        ("export", "--round"): "--weights",
        ("predict", "--round"): "--weights",
        ("init", "--privacy"): "--epsilon",
        ("keygen", "--show"): "--public",
    }
)
"""New option by command and old option."""

COMMANDS = MappingProxyType({"deal": "rehearse"})
"""New name of a command by its old name."""

VARIABLES = MappingProxyType(
    {
        "COHORTIUM_ONLY": "COHORTIUM_PLUGIN_ALLOW",
        "COHORTIUM_BLOCK": "COHORTIUM_PLUGIN_BLOCK",
    }
)
"""New name of an environment variable by its old name."""
