"""The tables, as SQLModel classes. Rows leave the store as the plain dataclasses of the other modules, never as these.

Notable choices:
- JSON is kept as the text that was written: lists skip parsing what they do not show, and hashed bytes never change.
- A deleted model keeps its row (`deleted` set, `blob_digest` null), so identities and edges of descendants still
  verify.
- `model.job_id` is no foreign key: `job.model_id` is one, and a cycle of two would leave no order to insert in.
- Values logged or scored together lie in one row as little-endian float64 (`packed`), not in a row a number.
"""

from __future__ import annotations

from sqlalchemy import Index, LargeBinary
from sqlmodel import Field, SQLModel

WITHOUT_ROWID = {"sqlite_with_rowid": False}


class Blob(SQLModel, table=True):
    """A file in the content-addressed folder: sha256 of its bytes, size, and what it is (weights, image, scores...)."""

    digest: str = Field(primary_key=True)
    bytes: int
    kind: str
    created: str


class Dataset(SQLModel, table=True):
    """A data-set identity (source, revision, split, transform, seed, deny-list, rows digest), by its digest."""

    digest: str = Field(primary_key=True)
    identity: str
    created: str


class Model(SQLModel, table=True):
    """One immutable model: what lists show of it.

    The long texts are in `model_text`, so that 1,000 models fit few pages.
    """

    id: str = Field(primary_key=True)
    digest: str = Field(unique=True)
    name: str = Field(index=True)
    kind: str
    family: str
    weights_digest: str = Field(index=True)
    blob_digest: str | None = Field(default=None, foreign_key="blob.digest", index=True)
    bytes: int
    dataset_digest: str | None = Field(default=None, foreign_key="dataset.digest")
    job_id: str | None = Field(default=None, index=True)
    note: str = ""
    facts: str
    created: str = Field(index=True)
    deleted: str | None = None


class ModelText(SQLModel, table=True):
    """The long side of a model; `canonical` holds the bytes that its `digest` and `id` were hashed from."""

    __tablename__ = "model_text"
    model: str = Field(primary_key=True, foreign_key="model.id")
    canonical: bytes = Field(sa_type=LargeBinary)
    spec: str
    config: str
    layout: str


class Edge(SQLModel, table=True):
    """`child` was made from `parent` in the role parent, teacher or plan (whose units were kept again)."""

    __table_args__ = WITHOUT_ROWID
    child: str = Field(primary_key=True, foreign_key="model.id")
    role: str = Field(primary_key=True)
    parent: str = Field(primary_key=True, foreign_key="model.id", index=True)


class Alias(SQLModel, table=True):
    """A movable name (current, best...) that points at a model."""

    name: str = Field(primary_key=True)
    model: str = Field(foreign_key="model.id", index=True)
    updated: str


class Tag(SQLModel, table=True):
    """A word on a model."""

    __table_args__ = WITHOUT_ROWID
    model: str = Field(primary_key=True, foreign_key="model.id")
    tag: str = Field(primary_key=True, index=True)


class ImageTag(SQLModel, table=True):
    """A word on an image of a data set: `source` names the set, `row` is the row id in it."""

    __tablename__ = "image_tag"
    __table_args__ = WITHOUT_ROWID
    source: str = Field(primary_key=True)
    row: str = Field(primary_key=True)
    tag: str = Field(primary_key=True)


class Job(SQLModel, table=True):
    """A job and all that pages, workers and terminals say to each other about it.

    `heartbeat` and `pid_started` are seconds since 1970; `fraction` is in [0, 1]; `requeues` counts deaths of the
    worker.
    """

    __table_args__ = (Index("ix_job_queue", "state", "device", "interactive", "id"),)
    id: str = Field(primary_key=True)
    name: str
    operation: str
    spec: str
    state: str
    control: str = "run"
    fraction: float = 0.0
    message: str = ""
    eta_s: float | None = None
    device: str
    interactive: int = 0
    pid: int | None = None
    pid_started: float | None = None
    heartbeat: float | None = None
    attempt: int = 1
    requeues: int = 0
    error: str | None = None
    model_id: str | None = Field(default=None, foreign_key="model.id", index=True)
    parent_model_id: str | None = Field(default=None, foreign_key="model.id", index=True)
    parent_job_id: str | None = Field(default=None, foreign_key="job.id")
    result: str = "{}"
    created: str
    started: str | None = None
    ended: str | None = None


class JobDependency(SQLModel, table=True):
    """`job` stays blocked until `needs` is done."""

    __tablename__ = "job_dependency"
    __table_args__ = WITHOUT_ROWID
    job: str = Field(primary_key=True, foreign_key="job.id")
    needs: str = Field(primary_key=True, foreign_key="job.id", index=True)


class Worker(SQLModel, table=True):
    """The last worker process of a device. Whether it lives is told by its file lock, not by this row."""

    device: str = Field(primary_key=True)
    pid: int
    started: float
    registered: str


class MetricKeySet(SQLModel, table=True):
    """The metric names of packed rows, in their order (a JSON list)."""

    __tablename__ = "metric_key_set"
    id: int | None = Field(default=None, primary_key=True)
    names: str = Field(unique=True)


class Metric(SQLModel, table=True):
    """All metrics of one job at one step."""

    __table_args__ = WITHOUT_ROWID
    job: str = Field(primary_key=True, foreign_key="job.id")
    step: int = Field(primary_key=True)
    attempt: int
    key_set: int = Field(foreign_key="metric_key_set.id")
    time: float
    packed: bytes = Field(sa_type=LargeBinary)


class Latest(SQLModel, table=True):
    """The last value of every metric of a job, for lists."""

    job: str = Field(primary_key=True, foreign_key="job.id")
    step: int
    attempt: int
    key_set: int = Field(foreign_key="metric_key_set.id")
    time: float
    packed: bytes = Field(sa_type=LargeBinary)


class Protocol(SQLModel, table=True):
    """How figures were taken (pinned images, size, dtype, versions): two figures compare only within one protocol."""

    id: str = Field(primary_key=True)
    content: str
    created: str


class ScoreSet(SQLModel, table=True):
    """One evaluation of a model on a split under a protocol; `row_ids` (JSON list) names the images."""

    __tablename__ = "score_set"
    __table_args__ = (Index("ix_score_set_split", "split", "model", "created"),)
    model: str = Field(primary_key=True, foreign_key="model.id")
    protocol: str = Field(primary_key=True, foreign_key="protocol.id")
    split: str = Field(primary_key=True)
    row_ids: str
    job_id: str | None = None
    created: str


class Score(SQLModel, table=True):
    """A mean of an evaluation."""

    __table_args__ = WITHOUT_ROWID
    model: str = Field(primary_key=True, foreign_key="model.id")
    protocol: str = Field(primary_key=True, foreign_key="protocol.id")
    split: str = Field(primary_key=True)
    metric: str = Field(primary_key=True)
    value: float | None


class ImageScore(SQLModel, table=True):
    """One metric of an evaluation for each of its images, in the order of the set's row ids."""

    __tablename__ = "image_score"
    __table_args__ = WITHOUT_ROWID
    model: str = Field(primary_key=True, foreign_key="model.id")
    protocol: str = Field(primary_key=True, foreign_key="protocol.id")
    split: str = Field(primary_key=True)
    metric: str = Field(primary_key=True)
    packed: bytes = Field(sa_type=LargeBinary)


class Image(SQLModel, table=True):
    """A picture of an evaluation (PNG blob): the original or the model's reconstruction of pinned image `position`."""

    __table_args__ = WITHOUT_ROWID
    model: str = Field(primary_key=True, foreign_key="model.id")
    protocol: str = Field(primary_key=True, foreign_key="protocol.id")
    kind: str = Field(primary_key=True)
    position: int = Field(primary_key=True)
    digest: str = Field(foreign_key="blob.digest")


class Measurement(SQLModel, table=True):
    """One benchmark run over several interleaved models: ratios are taken only within it."""

    id: int | None = Field(default=None, primary_key=True)
    device: str
    dtype: str
    settings: str
    job_id: str | None = None
    created: str


class MeasurementRow(SQLModel, table=True):
    """The figures (JSON, units in their names) of one model in a measurement."""

    __tablename__ = "measurement_row"
    __table_args__ = WITHOUT_ROWID
    measurement: int = Field(primary_key=True, foreign_key="measurement.id")
    model: str = Field(primary_key=True, foreign_key="model.id", index=True)
    figures: str


class Checkpoint(SQLModel, table=True):
    """A checkpoint folder of a job, relative to the store's root."""

    __table_args__ = (Index("ix_checkpoint_job", "job", "step"),)
    id: int | None = Field(default=None, primary_key=True)
    job: str = Field(foreign_key="job.id")
    step: int
    attempt: int
    folder: str = Field(unique=True)
    why: str
    figures: str
    created: str


class ArtifactReference(SQLModel, table=True):
    """Who needs which blob: what the clean-up goes by."""

    __tablename__ = "artifact_reference"
    __table_args__ = WITHOUT_ROWID
    digest: str = Field(primary_key=True, foreign_key="blob.digest")
    owner_kind: str = Field(primary_key=True)
    owner: str = Field(primary_key=True)
    role: str = Field(primary_key=True)


class Mirror(SQLModel, table=True):
    """What of ours was sent where (W&B), and how far."""

    __table_args__ = WITHOUT_ROWID
    target: str = Field(primary_key=True)
    subject: str = Field(primary_key=True)
    remote: str
    progress: str
    updated: str
