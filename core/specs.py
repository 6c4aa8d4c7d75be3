"""What a job is asked to do: one pydantic model per operation.

Forms (pages) and terminal options (`python -m core`) are derived from these classes: bounds, defaults, groups, help and the
condition under which a field applies stand here and nowhere else. A spec is part of a model's identity, so it is stored in
full, defaults included; what does not change the result (names, notes, device, worker counts, logging) is left out of the
identity by `identity_spec`.

Each field's `json_schema_extra` may hold: `group` (form section), `advanced` (hidden until asked for), `unit`,
`identity=False` (does not change the result), `when` ({other field: allowed values}, or several of these: elsewhere the field
does not apply, forms leave it out, and a value other than its default is refused).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SPEC_VERSION = 1

DType = Literal["float32", "bfloat16"]
PruneMethod = Literal["l1_unstructured", "global_magnitude", "two_four", "l2_structured", "structured"]
UnitScore = Literal["l2", "l1", "lamp", "fpgm", "random", "taylor", "wanda", "qr", "obs"]
UNSTRUCTURED_METHODS: tuple[str, ...] = ("l1_unstructured", "global_magnitude")
STRUCTURED_METHODS: tuple[str, ...] = ("l2_structured", "structured")
RATED_METHODS = (*UNSTRUCTURED_METHODS, *STRUCTURED_METHODS)
"""Methods that remove as much as is asked for; 2:4 always removes two of four."""
CALIBRATED_SCORES: tuple[str, ...] = ("taylor", "wanda", "qr", "obs")
"""Scores that look at activations or gradients on calibration images."""

LEAST_RATE, MOST_RATE = 0.1, 0.9
MOST_ROUNDS = 20

_LOOKS_AT_IMAGES = [
    {"method": ["structured"], "compensate": [True]},
    {"method": ["structured"], "score": list(CALIBRATED_SCORES)},
]

METHOD_TITLES: dict[str, str] = {
    "l2_structured": "L2 structured (channels, hidden units, heads: smaller and faster)",
    "structured": "Structured by any score, with what the removed units did folded into the kept ones",
    "l1_unstructured": "L1 unstructured (single weights, the same share of each layer)",
    "global_magnitude": "Global magnitude (single weights, one ranking over all layers)",
    "two_four": "2:4 semi-structured (two of each four weights: what sparse tensor cores take)",
}


def _field(default: Any, description: str, *, group: str, **options: Any) -> Any:
    """A pydantic field whose form hints (`group`, `advanced`, `unit`, `identity`, `when`) travel in its JSON schema."""
    hints: dict[str, Any] = {
        name: options.pop(name) for name in ("advanced", "unit", "identity", "when", "step") if name in options
    }
    return Field(default, description=description, json_schema_extra={"group": group, **hints}, **options)


class Spec(BaseModel):
    """Base of all specs: unknown fields are refused, numbers are finite, and values cannot change once set."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    operation: ClassVar[str]

    @classmethod
    def condition(cls, name: str) -> list[dict[str, list[Any]]]:
        """Where a field applies: in any of these cases, each of which is {other field: allowed values}; empty: always."""
        hints = cls.model_fields[name].json_schema_extra
        when = hints.get("when", []) if isinstance(hints, dict) else []
        return [when] if isinstance(when, dict) else list(when)  # type: ignore[list-item, arg-type]

    @classmethod
    def applies(cls, name: str, values: Mapping[str, Any]) -> bool:
        """Whether a field has an effect beside these values."""
        cases = cls.condition(name)
        return not cases or any(all(values.get(other) in allowed for other, allowed in case.items()) for case in cases)

    @model_validator(mode="after")
    def _nothing_idle(self) -> Self:
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name, field in type(self).model_fields.items():
            if values[name] != field.default and not self.applies(name, values):
                cases = [
                    " and ".join(f"{other} is {' or '.join(map(str, allowed))}" for other, allowed in case.items())
                    for case in self.condition(name)
                ]
                raise ValueError(f"{name} would have no effect: it applies where {', or '.join(cases)}")
        return self

    def identity_spec(self) -> dict[str, Any]:
        """The fields that determine the result, as JSON-able values: what a model's id is hashed over."""
        fields = type(self).model_fields
        kept = self.model_dump(mode="json")
        for name, field in fields.items():
            hints = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            if hints.get("identity") is False:
                kept.pop(name)
        return {"operation": self.operation, **kept}


class DataSpec(BaseModel):
    """Where images come from. `train`, `validation` and `test` parts never share an episode."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["sample", "hub", "parquet", "folder"] = Field(
        "sample",
        description="A bundled sample set, a Hugging Face data set id, local parquet files, or a folder of images.",
    )
    location: str = Field(
        "mspacman",
        min_length=1,
        description="Name of the sample set (mspacman, mspacman_large, mixed), hub id (Tahahah/PacmanDataset_3), or a path (glob allowed).",
    )
    column: str = Field("frame_image", min_length=1, description="Column that holds the image.")
    revision: str | None = Field(None, description="Revision of a hub data set: a commit, tag or branch.")
    validation_location: str | None = Field(
        None,
        description="A second location of the same kind for validation (Tahahah/PacmanDataset_2); else a part of this.",
    )
    max_rows: int = Field(20_000, ge=16, le=5_000_000, description="At most this many rows of a streamed set are used.")
    split_seed: int = Field(0, ge=0, description="Seed of the split into train, validation and test by episode.")
    skip_broken: bool = Field(False, description="Skip images that cannot be read (counted and shown) instead of stopping.")
    deny_rows: tuple[str, ...] = Field((), description="Row ids that are never used.")


class ImportSpec(Spec):
    """Bring a model into the store as a baseline."""

    operation: ClassVar[str] = "import"

    source: str = _field(
        "demo", "`demo`, a zoo name, a Hugging Face id, a folder, or a .safetensors/.pt/.pth file.", group="Model"
    )
    revision: str | None = _field(None, "Revision of a Hugging Face model.", group="Model", advanced=True)
    random_seed: int | None = _field(
        None, "For a zoo name only: build it with random weights from this seed.", group="Model", advanced=True, ge=0
    )


class PruneSpec(Spec):
    """Make a smaller or sparser model from a parent. The rate is always relative to the parent."""

    operation: ClassVar[str] = "prune"

    method: PruneMethod = _field("l2_structured", "What is removed, and by which score.", group="Method")
    rate: float | None = _field(
        0.5,
        "Share to remove: of the parent's non-zero weights (unstructured), or of each site's units (structured).",
        group="Method",
        ge=LEAST_RATE,
        le=MOST_RATE,
        step=0.05,
        when={"method": list(RATED_METHODS)},
    )
    threshold: float | None = _field(
        None,
        "Instead of a rate: zero every prunable weight whose magnitude is below this value.",
        group="Method",
        gt=0.0,
        advanced=True,
        when={"method": list(UNSTRUCTURED_METHODS)},
    )
    skip_unfit: bool = _field(
        False,
        "Leave layers whole whose input channels do not divide by four (depthwise, RGB); else they are named and refused.",
        group="Method",
        when={"method": ["two_four"]},
    )
    apply: Literal["cut", "mask"] = _field(
        "cut",
        "Cut: units go. Mask: they are zeroed and held at zero by masks through retraining, shapes stay; a later pruning cuts them.",
        group="Method",
        advanced=True,
        when={"method": list(STRUCTURED_METHODS)},
    )
    score: UnitScore = _field(
        "obs",
        "Which units matter: magnitude (l2, l1, lamp, fpgm), the loss's pull (taylor), activations (wanda, qr), the best "
        "least-squares replacement (obs), or chance (random, the control).",
        group="Method",
        when={"method": ["structured"]},
    )
    scope: Literal["local", "kind", "global"] = _field(
        "local",
        "The same share of each site, or one ranking over all sites (of a kind): shares then differ, the overall one holds.",
        group="Method",
        advanced=True,
        when={"method": ["structured"]},
    )
    compensate: bool = _field(
        True,
        "Fit what removed units did from the kept ones on calibration images, and fold it into the next layer.",
        group="Calibration",
        when={"method": ["structured"]},
    )
    calibration_images: int | None = _field(
        None,
        "Training images that scores and fits look at; empty: as many as twice the unknowns of the largest fit need.",
        group="Calibration",
        ge=1,
        le=4096,
        when=_LOOKS_AT_IMAGES,
    )
    calibration_size: int = _field(128, "Their side.", group="Calibration", ge=16, le=4096, unit="px", when=_LOOKS_AT_IMAGES)
    calibration_foreground_weight: float = _field(
        21.0, "Weight of pixels that move in scores and fits; 1 treats all alike.", group="Calibration", ge=1.0, le=1000.0,
        when=_LOOKS_AT_IMAGES,
    )  # fmt: skip
    calibration_data: DataSpec = _field(
        DataSpec(), "Where calibration images come from: their training part.", group="Calibration", advanced=True,
        when=_LOOKS_AT_IMAGES,
    )  # fmt: skip
    seed: int = _field(
        0, "Seed of the choice of calibration images and of random scores.", group="Calibration", ge=0, advanced=True,
        when=[*_LOOKS_AT_IMAGES, {"method": ["structured"], "score": ["random"]}],
    )  # fmt: skip
    part: Literal["both", "encoder", "decoder"] = _field("both", "Which half of the autoencoder is pruned.", group="Where")
    round_to: int = _field(
        1,
        "Kept hidden and mid channels are a multiple of this where the site allows (8 suits GPUs); heads are never rounded.",
        group="Where",
        ge=1,
        le=64,
        advanced=True,
        when={"method": list(STRUCTURED_METHODS)},
    )
    kinds: tuple[Literal["mid", "hidden", "heads", "stream"], ...] = _field(
        ("mid", "hidden", "heads"),
        "Site kinds to prune: ResBlock mid channels, GLU hidden pairs, attention heads, and the residual stream of each stage.",
        group="Where",
        advanced=True,
        when={"method": list(STRUCTURED_METHODS)},
    )
    stream_norms: Literal["plain", "exact"] = _field(
        "plain",
        "RMS norms over a cut stream: norm what is left, or go on as if the removed channels were there and zero.",
        group="Where",
        advanced=True,
        when={"method": list(STRUCTURED_METHODS)},
    )
    site_rates: dict[str, float] = _field(
        {},
        "Rates that override `rate` for a kind of site, in a coder or in its finer or deeper half, for a stage or one site, the most "
        "particular first, such as {'hidden': 0.7, 'decoder.fine.stream': 0.5, 'decoder.stages.2': 0.3}; stage -1 is the deepest; "
        "0 leaves it whole.",
        group="Where",
        advanced=True,
        when={"method": list(STRUCTURED_METHODS)},
    )

    @field_validator("rate", "threshold", mode="before")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"must be a finite number, not {value}")
        return value

    @field_validator("site_rates")
    @classmethod
    def _site_rates(cls, value: dict[str, float]) -> dict[str, float]:
        for name, rate in value.items():
            if not 0.0 <= rate <= 0.9:
                raise ValueError(f"rate of {name} is {rate}; legal is 0 (locked) to 0.9")
        return value

    @model_validator(mode="after")
    def _rate_or_threshold(self) -> PruneSpec:
        if self.stream_norms != "plain" and "stream" not in self.kinds:
            raise ValueError("stream_norms would have no effect: it applies where kinds has stream")
        if self.apply == "mask" and "stream" in self.kinds and self.stream_norms == "plain":
            raise ValueError(
                "a masked residual stream needs stream_norms exact: with plain norms the later cut would change what the model computes"
            )
        if self.threshold is None and self.rate is None:
            raise ValueError("give a rate (0.1 to 0.9) or, for the unstructured methods, a threshold")
        if self.threshold is not None and self.rate is not None:
            raise ValueError("give a rate or a threshold, not both (set rate to null to use a threshold)")
        return self

    @property
    def needs_calibration(self) -> bool:
        """Whether images are looked at."""
        return self.method == "structured" and (self.compensate or self.score in CALIBRATED_SCORES)


class RetrainSpec(Spec):
    """Train a model further. A pruned parent keeps its zeros and its narrower widths."""

    operation: ClassVar[str] = "retrain"

    data: DataSpec = _field(DataSpec(), "Training images.", group="Data")
    image_size: int = _field(
        128, "Side of the square that images are padded and resized to.", group="Data", ge=16, le=4096, unit="px"
    )
    batch_size: int = _field(1, "Images in a step.", group="Basic", ge=1, le=4096)
    n_epochs: int = _field(1, "Epochs.", group="Basic", ge=1, le=100_000)
    steps_per_epoch: int = _field(100, "Steps in an epoch.", group="Basic", ge=1, le=1_000_000)
    seed: int = _field(0, "Seed of the order of images.", group="Basic", ge=0)
    dtype: DType = _field("float32", "bfloat16 runs the model under autocast; weights stay in float32.", group="Basic")

    accumulation_steps: int = _field(
        1, "Parts that a batch is divided into, one after the other: less memory for the same batch. Each part weighs alike.",
        group="Basic", ge=1, le=4096, advanced=True,
    )  # fmt: skip
    recompute: bool = _field(
        False, "Compute activations again in the backward pass instead of keeping them: less memory, about a third slower, the same "
        "bits.", group="Basic", identity=False, advanced=True,
    )  # fmt: skip
    compile_model: bool = _field(
        False, "Compile the model first (torch.compile): minutes at the start, faster steps on a GPU.", group="Basic", advanced=True,
        when={"frozen_part": ["none", "decoder"], "teacher": [""], "recompute": [False]},
    )  # fmt: skip

    optimizer_name: Literal["adamw", "adam", "sgd", "rmsprop"] = _field("adamw", "Optimizer.", group="Optimizer")
    betas: tuple[float, float] = _field(
        (0.9, 0.999), "Decay of the first and second moment.", group="Optimizer", advanced=True,
        when={"optimizer_name": ["adamw", "adam"]},
    )  # fmt: skip
    momentum: float = _field(
        0.9, "Momentum.", group="Optimizer", ge=0.0, lt=1.0, advanced=True, when={"optimizer_name": ["sgd", "rmsprop"]}
    )
    eps: float = _field(
        1e-8, "Added to the denominator.", group="Optimizer", gt=0.0, le=1.0, advanced=True,
        when={"optimizer_name": ["adamw", "adam", "rmsprop"]},
    )  # fmt: skip
    weight_decay: float = _field(0.05, "Weight decay.", group="Optimizer", ge=0.0, le=10.0)
    decay_norms_and_biases: bool = _field(False, "Apply weight decay to norms and biases too.", group="Optimizer", advanced=True)
    grad_clip: float = _field(1.0, "Largest norm of the gradient; 0 turns clipping off.", group="Optimizer", ge=0.0, le=1e6)
    ema_decay: float = _field(
        0.0, "Keep an exponential moving average of the weights and store that; 0 is off.", group="Optimizer", ge=0.0, lt=1.0,
        advanced=True,
    )  # fmt: skip

    init_lr: float = _field(1e-4, "Learning rate after the warm-up.", group="Schedule", gt=0.0, le=1.0)
    lr_schedule_name: Literal["cosine", "constant", "linear", "step", "exponential", "onecycle", "plateau"] = _field(
        "cosine", "How the learning rate moves after the warm-up.", group="Schedule"
    )
    warmup_epochs: int = _field(5, "Epochs of linear warm-up, counted within n_epochs.", group="Schedule", ge=0, le=100_000)
    warmup_lr: float = _field(1e-6, "Learning rate at the first step of the warm-up.", group="Schedule", ge=0.0, le=1.0)
    min_lr: float = _field(
        0.0, "Learning rate at the end.", group="Schedule", ge=0.0, le=1.0, advanced=True,
        when={"lr_schedule_name": ["cosine", "linear", "onecycle", "plateau"]},
    )  # fmt: skip
    lr_gamma: float = _field(
        0.1, "Factor at each fall (step, plateau), or over the whole run (exponential).", group="Schedule", gt=0.0, le=1.0,
        advanced=True, when={"lr_schedule_name": ["step", "exponential", "plateau"]},
    )  # fmt: skip
    lr_step_epochs: int = _field(
        1, "Epochs between falls.", group="Schedule", ge=1, advanced=True, when={"lr_schedule_name": ["step"]}
    )
    lr_patience: int = _field(
        2, "Validations without a gain that are borne before a fall.", group="Schedule", ge=0, le=100_000, advanced=True,
        when={"lr_schedule_name": ["plateau"]},
    )  # fmt: skip

    reconstruction_loss: Literal["l1", "mse", "l1+mse"] = _field("l1", "Pixel loss.", group="Loss")
    foreground_weight: float = _field(
        1.0, "Weight of pixels that move (sprites) against the still background; 1 treats all alike.", group="Loss",
        ge=1.0, le=1000.0,
    )  # fmt: skip
    perceptual_weight: float = _field(
        0.0,
        "Weight of LPIPS; needs the package `lpips` and its weights on this machine.",
        group="Loss",
        ge=0.0,
        le=100.0,
    )
    teacher: str = _field(
        "",
        "Model to learn from besides the images: `baseline` (this family's), or an id, name or alias; empty for none.",
        group="Distillation",
        advanced=True,
    )
    distill_output_weight: float = _field(
        0.0, "Weight of the L1 distance to the teacher's output.", group="Distillation", ge=0.0, le=1000.0, advanced=True
    )
    distill_latent_weight: float = _field(
        0.0, "Weight of the relative squared distance to the teacher's latents: keeps the latent space.", group="Distillation",
        ge=0.0, le=1000.0, advanced=True,
    )  # fmt: skip
    distill_features_weight: float = _field(
        0.0, "Weight of the relative squared distance to the teacher's stage features.", group="Distillation",
        ge=0.0, le=1000.0, advanced=True,
    )  # fmt: skip
    frozen_part: Literal["none", "encoder", "decoder"] = _field(
        "none",
        "Part that keeps its weights: an encoder that is held keeps the latents as they are.",
        group="Loss",
        advanced=True,
    )
    frozen_stages: tuple[str, ...] = _field(
        (),
        "Further parts that keep their weights, by name: encoder.conv_in, encoder.stages.0, ..., encoder.conv_out, and the decoder's.",
        group="Loss",
        advanced=True,
    )
    batchnorm: Literal["frozen", "train"] = _field(
        "frozen",
        "BatchNorm statistics: keep the parent's, or update them (needs larger batches).",
        group="Loss",
        advanced=True,
    )

    resize_method: Literal["bicubic", "lanczos", "bilinear", "box", "nearest"] = _field(
        "bicubic", "How images are resized, those of validation too.", group="Data", advanced=True
    )
    augment_flip: float = _field(0.0, "Chance of a mirror image.", group="Augmentation", ge=0.0, le=1.0, advanced=True)
    augment_crop: float = _field(
        0.0, "Largest share of the side that a random crop cuts away; the rest fills the square.", group="Augmentation",
        ge=0.0, le=0.9, advanced=True,
    )  # fmt: skip
    augment_scale: float = _field(
        0.0, "Largest zoom about the middle, in or out: 0.1 is 0.9 to 1.1.", group="Augmentation", ge=0.0, le=0.9, advanced=True
    )
    augment_rotate: float = _field(0.0, "Largest rotation.", group="Augmentation", ge=0.0, le=45.0, advanced=True, unit="degrees")
    augment_shift: float = _field(
        0.0, "Largest shift each way, as a share of the side.", group="Augmentation", ge=0.0, le=0.5, advanced=True
    )
    augment_jitter: float = _field(
        0.0,
        "Largest relative change of brightness, contrast and saturation.",
        group="Augmentation",
        ge=0.0,
        le=1.0,
        advanced=True,
    )
    augment_blur: float = _field(
        0.0, "Largest radius of a blur of what the model sees; what it must rebuild stays sharp.", group="Augmentation",
        ge=0.0, le=16.0, advanced=True, unit="px",
    )  # fmt: skip

    eval_interval: int = _field(1, "Epochs between validations.", group="Validation", ge=1)
    val_steps: int = _field(100, "At most this many pinned images are validated.", group="Validation", ge=1, le=100_000)
    best_metric: Literal["psnr_db", "foreground_psnr_db", "ssim", "loss"] = _field(
        "psnr_db", "The checkpoint that is best by this figure becomes the new model.", group="Validation"
    )
    keep: Literal["best", "last"] = _field("best", "Which weights become the new model.", group="Validation", advanced=True)
    patience: int = _field(
        0, "End early after so many validations without a gain; 0 never does.", group="Early stopping", ge=0, le=100_000,
        advanced=True,
    )  # fmt: skip
    min_gain: float = _field(
        0.0, "What counts as a gain, in the unit of the figure that is best by.", group="Early stopping", ge=0.0, le=1000.0,
        advanced=True,
    )  # fmt: skip
    good_as: str = _field(
        "",
        "End as soon as validation is as good as of this model: `baseline`, `parent` (what the trained model was made of), an id, "
        "name or alias.",
        group="Early stopping",
        advanced=True,
    )
    max_seconds: float = _field(
        0.0, "End after so many seconds of training steps, over all pauses and resumes; 0 sets no limit.", group="Early stopping",
        ge=0.0, le=1e7, advanced=True, unit="s",
    )  # fmt: skip
    num_save_images: int = _field(8, "Reconstructions kept at each validation.", group="Validation", ge=0, le=64, identity=False)

    save_interval: int = _field(
        5, "Epochs between checkpoints (and once a minute besides).", group="Checkpoints", ge=1, identity=False
    )
    keep_every: int = _field(
        0, "Keep the checkpoint of every so many epochs to the end; 0 keeps none but the newest and those asked for.",
        group="Checkpoints", ge=0, le=100_000, identity=False, advanced=True,
    )  # fmt: skip
    layer_stats: bool = _field(
        False, "Measure weights, gradients and activations of each part at validations.", group="Checkpoints", identity=False,
        advanced=True,
    )  # fmt: skip
    log_interval: int = _field(
        100, "Steps between lines of the log; curves record each step.", group="Checkpoints", ge=1, identity=False
    )
    num_workers: int = _field(2, "Threads that load images.", group="Data", ge=0, le=64, identity=False, advanced=True)

    @field_validator("betas")
    @classmethod
    def _betas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0.0 <= beta < 1.0 for beta in value):
            raise ValueError(f"betas must lie in [0, 1), not {value}")
        return value

    @model_validator(mode="after")
    def _divides(self) -> RetrainSpec:
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"accumulation_steps must divide batch_size {self.batch_size}, and {self.accumulation_steps} does not"
            )
        return self

    @model_validator(mode="after")
    def _gains(self) -> RetrainSpec:
        if self.min_gain > 0 and self.patience == 0 and self.lr_schedule_name != "plateau":
            raise ValueError("min_gain would have no effect: it applies beside patience, or to the schedule plateau")
        return self

    @model_validator(mode="after")
    def _taught(self) -> RetrainSpec:
        wanted = max(self.distill_output_weight, self.distill_latent_weight, self.distill_features_weight) > 0
        if wanted != bool(self.teacher):
            raise ValueError("a teacher and at least one distillation weight go together (teacher `baseline` is this family's)")
        return self

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, warm-up included."""
        return self.n_epochs * self.steps_per_epoch


class BranchSpec(Spec):
    """Make a model of a checkpoint of a retraining. The service fills it in: `core.training`."""

    operation: ClassVar[str] = "branch"

    job: str = _field("", "The retraining.", group="Checkpoint", identity=False)
    step: int = _field(0, "Steps done at the checkpoint.", group="Checkpoint", ge=0)
    weights: Literal["best", "trained"] = _field(
        "trained",
        "The weights at that step (their moving average where it is on), or the best until then.",
        group="Checkpoint",
    )
    training: dict[str, Any] = _field(RetrainSpec().identity_spec(), "Settings of the retraining.", group="Checkpoint")


class ResetSpec(Spec):
    """Give parts or layers of a model new weights; the rest stays as it is."""

    operation: ClassVar[str] = "reset"

    layers: tuple[str, ...] = _field(
        (), "Parts or layers by name: decoder.conv_out, encoder.stages.2, decoder.stages.0.blocks.1, ...", group="What"
    )
    units: tuple[int, ...] = _field((), "Output units of these layers; none given: all.", group="What")
    to: Literal["random", "parent", "baseline"] = _field("random", "Where the new weights come from.", group="What")
    seed: int = _field(0, "Seed of random weights.", group="What", ge=0, when={"to": ["random"]})

    @field_validator("units")
    @classmethod
    def _units(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(unit < 0 for unit in value):
            raise ValueError(f"units are counted from 0, not {value}")
        return tuple(sorted(set(value)))


class InspectSpec(Spec):
    """Look at every image of a part of a data set, one by one."""

    operation: ClassVar[str] = "inspect"

    data: DataSpec = _field(DataSpec(), "Images.", group="Data")
    image_size: int = _field(
        128, "Side of the square that images are padded and resized to.", group="Data", ge=16, le=4096, unit="px"
    )
    part: Literal["train", "validation", "test"] = _field("train", "Part of the data.", group="Data")
    max_images: int = _field(20_000, "At most so many.", group="Data", ge=1, le=1_000_000)
    batch_size: int = _field(8, "Images at once; does not change the figures.", group="Data", ge=1, le=256, identity=False)


class EvaluateSpec(Spec):
    """Measure quality on pinned images."""

    operation: ClassVar[str] = "evaluate"

    data: DataSpec = _field(DataSpec(), "Images.", group="Data")
    split: Literal["test", "validation"] = _field("test", "Which part of the data.", group="Data")
    image_size: int = _field(
        128, "Side of the square that images are padded and resized to.", group="Data", ge=16, le=4096, unit="px"
    )
    num_images: int = _field(64, "Pinned images.", group="Data", ge=1, le=10_000)
    patience: int = _field(
        0, "End early after so many validations without a gain; 0 never does.", group="Early stopping", ge=0, le=100_000,
        advanced=True,
    )  # fmt: skip
    min_gain: float = _field(
        0.0, "What counts as a gain, in the unit of the figure that is best by.", group="Early stopping", ge=0.0, le=1000.0,
        advanced=True,
    )  # fmt: skip
    good_as: str = _field(
        "",
        "End as soon as validation is as good as of this model: `baseline`, `parent` (what the trained model was made of), an id, "
        "name or alias.",
        group="Early stopping",
        advanced=True,
    )
    max_seconds: float = _field(
        0.0, "End after so many seconds of training steps, over all pauses and resumes; 0 sets no limit.", group="Early stopping",
        ge=0.0, le=1e7, advanced=True, unit="s",
    )  # fmt: skip
    num_save_images: int = _field(8, "Reconstructions kept as pictures.", group="Data", ge=0, le=64)
    batch_size: int = _field(4, "Images at once; does not change the figures.", group="Basic", ge=1, le=256, identity=False)
    dtype: DType = _field("float32", "Precision.", group="Basic")


class BenchmarkSpec(Spec):
    """Measure cost. All models of one benchmark run interleaved, so their ratios are comparable."""

    operation: ClassVar[str] = "benchmark"

    models: tuple[str, ...] = _field((), "Further models that run interleaved with this one (ids).", group="Models")
    with_baseline: bool = _field(True, "Run the baseline of each model beside it.", group="Models")
    image_size: int = _field(128, "Side of the square images.", group="Sizes", ge=16, le=4096, unit="px")
    batch_size: int = _field(1, "Images at once.", group="Sizes", ge=1, le=1024)
    repeats: int = _field(20, "Timed repeats of each model.", group="Protocol", ge=3, le=10_000)
    warmup: int = _field(3, "Untimed runs of each model before.", group="Protocol", ge=1, le=1000, advanced=True)
    dtype: DType = _field("float32", "Precision.", group="Protocol")


class SensitivitySpec(Spec):
    """Measure what pruning each site alone costs in quality, in one shot, on validation images."""

    operation: ClassVar[str] = "sensitivity"

    prune: PruneSpec = _field(
        PruneSpec(method="structured"), "How units are chosen and fitted, and where; its own rates are not used.", group="Pruning"
    )
    granularity: Literal["site", "stage"] = _field(
        "site", "Prune one site at a time, or the sites of one kind of a stage together.", group="Pruning"
    )
    rates: tuple[float, ...] = _field(
        (0.25, 0.5, 0.75), "Shares of the units to remove.", group="Pruning", min_length=1, max_length=20
    )
    data: DataSpec = _field(DataSpec(), "Images: their validation part.", group="Data")
    image_size: int = _field(
        128, "Side of the square that images are padded and resized to.", group="Data", ge=16, le=4096, unit="px"
    )
    num_images: int = _field(32, "Pinned images.", group="Data", ge=1, le=10_000)
    batch_size: int = _field(8, "Images at once; does not change the figures.", group="Data", ge=1, le=256, identity=False)

    @field_validator("rates")
    @classmethod
    def _rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.05 <= rate <= 0.9 for rate in value):
            raise ValueError(f"rates lie in 0.05 to 0.9, not {value}")
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _structured(self) -> Self:
        if self.prune.method not in STRUCTURED_METHODS:
            raise ValueError(f"sensitivity is of structured pruning ({', '.join(STRUCTURED_METHODS)}), not {self.prune.method}")
        for name in ("rate", "site_rates", "scope", "round_to", "apply"):
            if getattr(self.prune, name) != PruneSpec.model_fields[name].default:
                raise ValueError(f"prune.{name} would have no effect: the rates are those of `rates`")
        return self


class ProfileSpec(Spec):
    """Measure each block's latency over a grid of widths on this device, so that plans can be timed before they are made."""

    operation: ClassVar[str] = "profile"

    part: Literal["both", "encoder", "decoder"] = _field("both", "Which half of the autoencoder is measured.", group="Grid")
    streams: bool = _field(False, "Vary the residual streams too: the square of the measurements.", group="Grid")
    rates: tuple[float, ...] = _field(
        (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875), "Shares of the units that are left out, besides none.", group="Grid",
        min_length=1, max_length=20,
    )  # fmt: skip
    image_size: int = _field(128, "Side of the square images.", group="Protocol", ge=16, le=4096, unit="px")
    batch_size: int = _field(1, "Images at once.", group="Protocol", ge=1, le=1024)
    dtype: DType = _field("float32", "Precision.", group="Protocol")
    repeats: int = _field(9, "Timed repeats of each block.", group="Protocol", ge=3, le=1000)
    fit_models: int = _field(
        6, "Whole models that offset and scale are fitted on.", group="Protocol", ge=2, le=100, advanced=True
    )
    check_models: int = _field(
        12, "Further whole models, of other widths, that the prediction is checked on.", group="Protocol", ge=2, le=100,
        advanced=True,
    )  # fmt: skip
    seed: int = _field(0, "Seed of the widths of these models.", group="Protocol", ge=0, advanced=True)

    @field_validator("rates")
    @classmethod
    def _rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.0 < rate <= 0.95 for rate in value):
            raise ValueError(f"rates lie over 0 and up to 0.95, not {value}")
        return tuple(sorted(set(value)))


class ReproduceSpec(Spec):
    """Run the chain that made a model again and compare; all settings are those on record."""

    operation: ClassVar[str] = "reproduce"


class ScheduleSpec(Spec):
    """How a pruning is spread over rounds."""

    operation: ClassVar[str] = "schedule"

    schedule: Literal["cubic", "linear", "iterative", "one-shot"] = _field(
        "cubic",
        "Cubic: most early; linear: alike. Both hold units at zero by masks and cut them in the last round. Iterative: the same share "
        "of what is left, cut in each round. One-shot: prune once, then retrain.",
        group="In rounds",
    )
    rounds: int = _field(
        4,
        "Rounds, each a pruning and a part of the retraining; every one is a model.",
        group="In rounds",
        ge=2,
        le=MOST_ROUNDS,
        when={"schedule": ["cubic", "linear", "iterative"]},
    )


_GRAPHS = {"format": ["onnx", "torch_export"]}


class ExportSpec(Spec):
    """Write a model for use elsewhere, check it against the model on pinned images, and time it beside the model."""

    operation: ClassVar[str] = "export"

    format: Literal["onnx", "torch_export", "offshoot", "diffusers", "original"] = _field(
        "onnx",
        "ONNX or torch.export graphs of encoder and decoder; or safetensors with a config: ours, or (unpruned shapes only) the keys of "
        "diffusers or of the original release.",
        group="Export",
    )
    part: Literal["both", "encoder", "decoder"] = _field("both", "Which half is written.", group="Export", when=_GRAPHS)
    dtype: Literal["float32", "float16", "bfloat16"] = _field(
        "float32", "Precision of the weights, and of a graph's arithmetic.", group="Export"
    )
    quantize: Literal["none", "int8"] = _field(
        "none", "Static 8-bit convolutions, calibrated on validation images.", group="Export",
        when={"format": ["onnx"], "dtype": ["float32"]},
    )  # fmt: skip
    dynamic: bool = _field(True, "One graph for any batch and any size; else for these alone.", group="Graph", when=_GRAPHS)
    processing: bool = _field(
        False,
        "The graphs take and give 8-bit images (B, H, W, 3) instead of (B, 3, H, W) in [-1, 1].",
        group="Graph",
        when=_GRAPHS,
    )
    opset: int = _field(20, "ONNX operator set.", group="Graph", ge=18, le=23, advanced=True, when={"format": ["onnx"]})
    calibration_images: int = _field(
        32, "Validation images that ranges are taken from.", group="Graph", ge=1, le=1000, when={"quantize": ["int8"]}
    )

    data: DataSpec = _field(DataSpec(), "Images: the check takes test images, the calibration validation images.", group="Check")
    image_size: int = _field(
        128, "Side of the images that the export is checked and timed on.", group="Check", ge=16, le=4096, unit="px"
    )
    num_images: int = _field(16, "Pinned images of the check.", group="Check", ge=1, le=1000)
    batch_size: int = _field(1, "Images at once; a graph that is not dynamic takes no other number.", group="Check", ge=1, le=256)
    repeats: int = _field(20, "Timed repeats of export and model, interleaved.", group="Check", ge=3, le=1000)

    @model_validator(mode="after")
    def _runs_here(self) -> Self:
        if self.format == "onnx" and self.dtype == "bfloat16":
            raise ValueError(
                "onnxruntime has no bfloat16 convolutions on a CPU, so the export could not be checked; take float16"
            )
        return self


MOST_RECONSTRUCTING = 4


class ReconstructSpec(Spec):
    """Put one picture through some models, to look at what they make of it."""

    operation: ClassVar[str] = "reconstruct"

    image_digest: str = _field("", "The picture's blob (SHA-256), an 8-bit RGB PNG.", group="Picture")
    image_size: int = _field(
        128, "Side of the square that the picture is padded and resized to.", group="Picture", ge=16, le=4096, unit="px"
    )
    models: tuple[str, ...] = _field(
        (), "Further models beside the first (ids).", group="Models", max_length=MOST_RECONSTRUCTING - 1
    )


SPECS: dict[str, type[Spec]] = {
    spec.operation: spec
    for spec in (
        ImportSpec,
        PruneSpec,
        RetrainSpec,
        BranchSpec,
        ResetSpec,
        InspectSpec,
        EvaluateSpec,
        BenchmarkSpec,
        SensitivitySpec,
        ProfileSpec,
        ReproduceSpec,
        ExportSpec,
        ReconstructSpec,
    )
}
