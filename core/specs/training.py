"""What a retraining is asked to do, and what makes a model of its checkpoints or of new weights."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from core.specs.base import DataSpec, DType, Spec, spec_field


class RetrainSpec(Spec):
    """Train a model further. A pruned parent keeps its zeros and its narrower widths."""

    operation: ClassVar[str] = "retrain"

    data: DataSpec = spec_field(DataSpec(), "Training images.", group="Data")
    image_size: int = spec_field(
        128, "Side of the square that images are padded and resized to.", group="Data", ge=16, le=4096, unit="px"
    )
    batch_size: int = spec_field(1, "Images in a step.", group="Basic", ge=1, le=4096)
    n_epochs: int = spec_field(1, "Epochs.", group="Basic", ge=1, le=100_000)
    steps_per_epoch: int = spec_field(100, "Steps in an epoch.", group="Basic", ge=1, le=1_000_000)
    seed: int = spec_field(0, "Seed of the order of images.", group="Basic", ge=0)
    dtype: DType = spec_field("float32", "bfloat16 runs the model under autocast; weights stay in float32.", group="Basic")

    accumulation_steps: int = spec_field(
        1, "Parts that a batch is divided into, one after the other: less memory for the same batch. Each part weighs alike.",
        group="Basic", ge=1, le=4096, advanced=True,
    )  # fmt: skip
    processes: int = spec_field(
        1, "Processes that train together, each on a device of its own (the job's GPU and those after it; on the CPU they share its "
        "cores): each takes its share of every batch. More than one needs torchrun, which comes with torch.",
        group="Basic", ge=1, le=64, identity=False, advanced=True,
    )  # fmt: skip
    machines: int = spec_field(
        1, "Machines that the processes are spread over, alike. The others run `python -m core assist`; they find this one at the "
        "address in the setting `rendezvous`.", group="Basic", ge=1, le=64, identity=False, advanced=True,
    )  # fmt: skip
    recompute: bool = spec_field(
        False, "Compute activations again in the backward pass instead of keeping them: less memory, about a third slower, the same "
        "bits.", group="Basic", identity=False, advanced=True,
    )  # fmt: skip
    compile_model: bool = spec_field(
        False, "Compile the model first (torch.compile): minutes at the start, faster steps on a GPU.", group="Basic", advanced=True,
        when={"frozen_part": ["none", "decoder"], "teacher": [""], "recompute": [False]},
    )  # fmt: skip

    optimizer_name: Literal["adamw", "adam", "sgd", "rmsprop", "muon"] = spec_field(
        "adamw",
        "Optimizer. Muon moves weight matrices along their orthogonalized momentum, the rest by AdamW.",
        group="Optimizer",
    )
    muon_max_side: int = spec_field(
        128, "Weight matrices whose smaller side is longer go by AdamW: an update costs by its square.",
        group="Optimizer", ge=1, le=65_536, advanced=True, when={"optimizer_name": ["muon"]},
    )  # fmt: skip
    betas: tuple[float, float] = spec_field(
        (0.9, 0.999), "Decay of the first and second moment.", group="Optimizer", advanced=True,
        when={"optimizer_name": ["adamw", "adam", "muon"]},
    )  # fmt: skip
    momentum: float = spec_field(
        0.9, "Momentum.", group="Optimizer", ge=0.0, lt=1.0, advanced=True, when={"optimizer_name": ["sgd", "rmsprop"]}
    )
    eps: float = spec_field(
        1e-8, "Added to the denominator.", group="Optimizer", gt=0.0, le=1.0, advanced=True,
        when={"optimizer_name": ["adamw", "adam", "rmsprop", "muon"]},
    )  # fmt: skip
    weight_decay: float = spec_field(0.05, "Weight decay.", group="Optimizer", ge=0.0, le=10.0)
    decay_norms_and_biases: bool = spec_field(
        False, "Apply weight decay to norms and biases too.", group="Optimizer", advanced=True
    )
    grad_clip: float = spec_field(1.0, "Largest norm of the gradient; 0 turns clipping off.", group="Optimizer", ge=0.0, le=1e6)
    ema_decay: float = spec_field(
        0.0, "Keep an exponential moving average of the weights and store that; 0 is off.", group="Optimizer", ge=0.0, lt=1.0,
        advanced=True,
    )  # fmt: skip

    init_lr: float = spec_field(1e-4, "Learning rate after the warm-up.", group="Schedule", gt=0.0, le=1.0)
    lr_schedule_name: Literal["cosine", "constant", "linear", "step", "exponential", "onecycle", "plateau"] = spec_field(
        "cosine", "How the learning rate moves after the warm-up.", group="Schedule"
    )
    warmup_epochs: int = spec_field(5, "Epochs of linear warm-up, counted within n_epochs.", group="Schedule", ge=0, le=100_000)
    warmup_lr: float = spec_field(1e-6, "Learning rate at the first step of the warm-up.", group="Schedule", ge=0.0, le=1.0)
    min_lr: float = spec_field(
        0.0, "Learning rate at the end.", group="Schedule", ge=0.0, le=1.0, advanced=True,
        when={"lr_schedule_name": ["cosine", "linear", "onecycle", "plateau"]},
    )  # fmt: skip
    lr_gamma: float = spec_field(
        0.1, "Factor at each fall (step, plateau), or over the whole run (exponential).", group="Schedule", gt=0.0, le=1.0,
        advanced=True, when={"lr_schedule_name": ["step", "exponential", "plateau"]},
    )  # fmt: skip
    lr_step_epochs: int = spec_field(
        1, "Epochs between falls.", group="Schedule", ge=1, advanced=True, when={"lr_schedule_name": ["step"]}
    )
    lr_patience: int = spec_field(
        2, "Validations without a gain that are borne before a fall.", group="Schedule", ge=0, le=100_000, advanced=True,
        when={"lr_schedule_name": ["plateau"]},
    )  # fmt: skip

    reconstruction_loss: Literal["l1", "mse", "l1+mse"] = spec_field("l1", "Pixel loss.", group="Loss")
    foreground_weight: float = spec_field(
        1.0, "Weight of pixels that move (sprites) against the still background; 1 treats all alike.", group="Loss",
        ge=1.0, le=1000.0,
    )  # fmt: skip
    perceptual_weight: float = spec_field(
        0.0,
        "Weight of LPIPS; needs the package `lpips` and its weights on this machine.",
        group="Loss",
        ge=0.0,
        le=100.0,
    )
    teacher: str = spec_field(
        "",
        "Model to learn from besides the images: `baseline` (this family's), or an id, name or alias; empty for none.",
        group="Distillation",
        advanced=True,
    )
    distill_output_weight: float = spec_field(
        0.0, "Weight of the L1 distance to the teacher's output.", group="Distillation", ge=0.0, le=1000.0, advanced=True
    )
    distill_latent_weight: float = spec_field(
        0.0, "Weight of the relative squared distance to the teacher's latents: keeps the latent space.", group="Distillation",
        ge=0.0, le=1000.0, advanced=True,
    )  # fmt: skip
    distill_features_weight: float = spec_field(
        0.0, "Weight of the relative squared distance to the teacher's stage features.", group="Distillation",
        ge=0.0, le=1000.0, advanced=True,
    )  # fmt: skip
    frozen_part: Literal["none", "encoder", "decoder"] = spec_field(
        "none",
        "Part that keeps its weights: an encoder that is held keeps the latents as they are.",
        group="Loss",
        advanced=True,
    )
    frozen_stages: tuple[str, ...] = spec_field(
        (),
        "Further parts that keep their weights, by name: encoder.conv_in, encoder.stages.0, ..., encoder.conv_out, and the decoder's.",
        group="Loss",
        advanced=True,
    )
    batchnorm: Literal["frozen", "train"] = spec_field(
        "frozen",
        "BatchNorm statistics: keep the parent's, or update them (needs larger batches).",
        group="Loss",
        advanced=True,
    )

    resize_method: Literal["bicubic", "lanczos", "bilinear", "box", "nearest"] = spec_field(
        "bicubic", "How images are resized, those of validation too.", group="Data", advanced=True
    )
    more_data: tuple[DataSpec, ...] = spec_field(
        (), "Further data sets that train together with the first; each has a share of every batch. Rows are named set:row, sets from 1.",
        group="Data", advanced=True, max_length=15,
    )  # fmt: skip
    data_weights: tuple[float, ...] = spec_field(
        (),
        "Shares of the data sets in a batch, one number a set; none given: by their training images.",
        group="Data",
        advanced=True,
    )
    data_weights_end: tuple[float, ...] = spec_field(
        (), "Shares at the last step, reached in a straight line over the training (a curriculum); none given: they stay.",
        group="Data", advanced=True,
    )  # fmt: skip
    data_temperature: float = spec_field(
        1.0, "Evens the shares out: each is taken to the power of 1 over this.", group="Data", gt=0.0, le=100.0, advanced=True
    )
    draw_by: Literal["alike", "contrast", "loss"] = spec_field(
        "alike", "Draw images with more contrast more often, or those that the parent rebuilds worst (by its newest inspection).",
        group="Data", advanced=True,
    )  # fmt: skip
    draw_power: float = spec_field(
        1.0, "How strongly: contrast or squared error over its mean, to this power (between 1/20 and 20).", group="Data", ge=0.1, le=4.0,
        advanced=True, when={"draw_by": ["contrast", "loss"]},
    )  # fmt: skip
    loss_table: str = spec_field(
        "", "The inspection that tells the losses, by its table's digest; empty: the newest of the parent.", group="Data",
        advanced=True, when={"draw_by": ["loss"]},
    )  # fmt: skip
    row_weights: tuple[tuple[str, float], ...] = spec_field(
        (), "Training images that are drawn more or less often than the others, as [row id, how many times as often] each.",
        group="Data", advanced=True,
    )  # fmt: skip
    augment_flip: float = spec_field(0.0, "Chance of a mirror image.", group="Augmentation", ge=0.0, le=1.0, advanced=True)
    augment_crop: float = spec_field(
        0.0, "Largest share of the side that a random crop cuts away; the rest fills the square.", group="Augmentation",
        ge=0.0, le=0.9, advanced=True,
    )  # fmt: skip
    augment_scale: float = spec_field(
        0.0, "Largest zoom about the middle, in or out: 0.1 is 0.9 to 1.1.", group="Augmentation", ge=0.0, le=0.9, advanced=True
    )
    augment_rotate: float = spec_field(
        0.0, "Largest rotation.", group="Augmentation", ge=0.0, le=45.0, advanced=True, unit="degrees"
    )
    augment_shift: float = spec_field(
        0.0, "Largest shift each way, as a share of the side.", group="Augmentation", ge=0.0, le=0.5, advanced=True
    )
    augment_jitter: float = spec_field(
        0.0,
        "Largest relative change of brightness, contrast and saturation.",
        group="Augmentation",
        ge=0.0,
        le=1.0,
        advanced=True,
    )
    augment_blur: float = spec_field(
        0.0, "Largest radius of a blur of what the model sees; what it must rebuild stays sharp.", group="Augmentation",
        ge=0.0, le=16.0, advanced=True, unit="px",
    )  # fmt: skip

    eval_interval: int = spec_field(1, "Epochs between validations.", group="Validation", ge=1)
    val_steps: int = spec_field(100, "At most this many pinned images are validated.", group="Validation", ge=1, le=100_000)
    best_metric: Literal["psnr_db", "foreground_psnr_db", "ssim", "loss"] = spec_field(
        "psnr_db", "The checkpoint that is best by this figure becomes the new model.", group="Validation"
    )
    keep: Literal["best", "last"] = spec_field("best", "Which weights become the new model.", group="Validation", advanced=True)
    patience: int = spec_field(
        0, "End early after so many validations without a gain; 0 never does.", group="Early stopping", ge=0, le=100_000,
        advanced=True,
    )  # fmt: skip
    min_gain: float = spec_field(
        0.0, "What counts as a gain, in the unit of the figure that is best by.", group="Early stopping", ge=0.0, le=1000.0,
        advanced=True,
    )  # fmt: skip
    good_as: str = spec_field(
        "",
        "End as soon as validation is as good as of this model: `baseline`, `parent` (what the trained model was made of), an id, "
        "name or alias.",
        group="Early stopping",
        advanced=True,
    )
    max_seconds: float = spec_field(
        0.0, "End after so many seconds of training steps, over all pauses and resumes; 0 sets no limit.", group="Early stopping",
        ge=0.0, le=1e7, advanced=True, unit="s",
    )  # fmt: skip
    num_save_images: int = spec_field(
        8, "Reconstructions kept at each validation.", group="Validation", ge=0, le=64, identity=False
    )

    save_interval: int = spec_field(
        5, "Epochs between checkpoints (and once a minute besides).", group="Checkpoints", ge=1, identity=False
    )
    keep_every: int = spec_field(
        0, "Keep the checkpoint of every so many epochs to the end; 0 keeps none but the newest and those asked for.",
        group="Checkpoints", ge=0, le=100_000, identity=False, advanced=True,
    )  # fmt: skip
    layer_stats: bool = spec_field(
        False, "Measure weights, gradients and activations of each part at validations.", group="Checkpoints", identity=False,
        advanced=True,
    )  # fmt: skip
    log_interval: int = spec_field(
        100, "Steps between lines of the log; curves record each step.", group="Checkpoints", ge=1, identity=False
    )
    num_workers: int = spec_field(2, "Threads that load images.", group="Data", ge=0, le=64, identity=False, advanced=True)

    @field_validator("betas")
    @classmethod
    def _betas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0.0 <= beta < 1.0 for beta in value):
            raise ValueError(f"betas must lie in [0, 1), not {value}")
        return value

    @field_validator("row_weights")
    @classmethod
    def _row_weights(cls, value: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
        for row, weight in value:
            if not 0.01 <= weight <= 100.0:
                raise ValueError(f"a row is drawn 0.01 to 100 times as often as others, not {weight} times ({row})")
        if len(dict(value)) < len(value):
            raise ValueError("a row has one weight")
        return tuple(sorted(value))

    @model_validator(mode="after")
    def _mixed(self) -> RetrainSpec:
        count = 1 + len(self.more_data)
        for name in ("data_weights", "data_weights_end"):
            given = getattr(self, name)
            if given and (len(given) != count or min(given) < 0 or max(given) == 0):
                raise ValueError(
                    f"{name} holds one number for each of the {count} data sets, none below 0 and one above, not {given}"
                )
        if not self.more_data and (self.data_weights or self.data_weights_end or self.data_temperature != 1.0):
            raise ValueError("data_weights, data_weights_end and data_temperature would have no effect: there is one data set")
        if self.data_weights_end and not self.data_weights:
            raise ValueError("data_weights_end goes with data_weights: where the shares begin")
        if len({data.skip_broken for data in self.data_sets}) > 1:
            raise ValueError("skip_broken is set for all data sets or for none")
        return self

    @property
    def data_sets(self) -> tuple[DataSpec, ...]:
        """The first data set and the further ones."""
        return (self.data, *self.more_data)

    @model_validator(mode="after")
    def _not_denied(self) -> RetrainSpec:
        several = bool(self.more_data)
        denied = {f"{i}:{row}" if several else row for i, data in enumerate(self.data_sets, start=1) for row in data.deny_rows}
        both = sorted(dict(self.row_weights).keys() & denied)
        if both:
            raise ValueError(f"row {both[0]} cannot be left out and have a weight")
        return self

    @model_validator(mode="after")
    def _divides(self) -> RetrainSpec:
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"accumulation_steps must divide batch_size {self.batch_size}, and {self.accumulation_steps} does not"
            )
        if self.batch_size % (self.accumulation_steps * self.processes):
            parts = f" in {self.accumulation_steps} parts" if self.accumulation_steps > 1 else ""
            raise ValueError(f"processes must divide batch_size {self.batch_size}{parts}, and {self.processes} does not")
        if self.processes % self.machines:
            raise ValueError(f"machines must divide processes {self.processes}, and {self.machines} does not")
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

    job: str = spec_field("", "The retraining.", group="Checkpoint", identity=False)
    step: int = spec_field(0, "Steps done at the checkpoint.", group="Checkpoint", ge=0)
    weights: Literal["best", "trained"] = spec_field(
        "trained",
        "The weights at that step (their moving average where it is on), or the best until then.",
        group="Checkpoint",
    )
    training: dict[str, Any] = spec_field(RetrainSpec().identity_spec(), "Settings of the retraining.", group="Checkpoint")


class ResetSpec(Spec):
    """Give parts or layers of a model new weights; the rest stays as it is."""

    operation: ClassVar[str] = "reset"

    layers: tuple[str, ...] = spec_field(
        (), "Parts or layers by name: decoder.conv_out, encoder.stages.2, decoder.stages.0.blocks.1, ...", group="What"
    )
    units: tuple[int, ...] = spec_field((), "Output units of these layers; none given: all.", group="What")
    to: Literal["random", "parent", "baseline"] = spec_field("random", "Where the new weights come from.", group="What")
    seed: int = spec_field(0, "Seed of random weights.", group="What", ge=0, when={"to": ["random"]})

    @field_validator("units")
    @classmethod
    def _units(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(unit < 0 for unit in value):
            raise ValueError(f"units are counted from 0, not {value}")
        return tuple(sorted(set(value)))
