"""What a training does, as data; free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from dcaecore.schedules import learning_rate


@dataclass(frozen=True)
class TrainSettings:
    """What a training does; the fields mean what their namesakes of the retrain form mean."""

    n_epochs: int = 1
    steps_per_epoch: int = 100
    optimizer_name: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay_norms_and_biases: bool = False
    muon_max_side: int = 128
    grad_clip: float = 1.0
    ema_decay: float = 0.0
    init_lr: float = 1e-4
    lr_schedule_name: str = "cosine"
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    min_lr: float = 0.0
    lr_gamma: float = 0.1
    lr_step_epochs: int = 1
    reconstruction_loss: str = "l1"
    foreground_weight: float = 1.0
    perceptual_weight: float = 0.0
    distill_output_weight: float = 0.0
    distill_latent_weight: float = 0.0
    distill_features_weight: float = 0.0
    frozen_part: str = "none"
    batchnorm: str = "frozen"
    dtype: str = "float32"
    accumulation_steps: int = 1
    recompute: bool = False
    compile_model: bool = False
    seed: int = 0
    eval_interval: int = 1
    best_metric: str = "psnr_db"
    keep: str = "best"
    patience: int = 0
    min_gain: float = 0.0
    stop_value: float | None = None
    max_seconds: float = 0.0
    lr_patience: int = 2
    frozen_stages: tuple[str, ...] = ()
    save_interval: int = 5
    keep_every: int = 0
    layer_stats: bool = False
    log_interval: int = 100

    @property
    def total_steps(self) -> int:
        return self.n_epochs * self.steps_per_epoch

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0); of the schedule `plateau` before any fall."""
        return learning_rate(
            step,
            name=self.lr_schedule_name,
            init_lr=self.init_lr,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_epochs * self.steps_per_epoch,
            warmup_lr=self.warmup_lr,
            min_lr=self.min_lr,
            gamma=self.lr_gamma,
            step_size=self.lr_step_epochs * self.steps_per_epoch,
        )
