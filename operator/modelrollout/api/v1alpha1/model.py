"""``spec.model``, and what names a file in an object store."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from modelrollout.api.uris import FOLLOWED, FORMS, SECRETS
from modelrollout.api.v1alpha1.schema import KEYS, ApiModel, Duration, LocalName, Name, Rule, Sha256, Uri
from modelrollout.contract.formats import FLAVOUR_BY_FORMAT, Flavour, Rounds, SourceFormat

Lineage = Annotated[dict[str, Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=32), KEYS]
ArrayName = Annotated[str, StringConstraints(max_length=128)]


class Credentials(ApiModel):
    """How to read from the store."""

    secret_ref: LocalName = Field(
        description=(
            f"Secret in this namespace with what opens the store ({SECRETS}). It is mounted into Jobs and"
            " pods; the operator never reads it."
        )
    )


class SecretKey(ApiModel):
    """A key of a Secret in the same namespace."""

    name: Name = Field(description="Name of the Secret.")
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = Field(
        description="Key in the Secret."
    )


class Signature(ApiModel):
    """The model must be signed: verified on its bytes before anything of it is parsed.

    Sign with OpenSSF model signing: model_signing sign key MODEL --private_key KEY --signature
    MODEL.sig
    """

    key_secret_ref: SecretKey = Field(
        description="Where the signer's public key is, in PEM form (elliptic curve P-256, P-384 or P-521)."
    )
    uri: Uri | None = Field(
        None, description="The signature file; left out: the model's URI with .sig at its end."
    )


class Follow(ApiModel):
    """New bytes at spec.model.uri are new versions, without a change of spec."""

    every: Duration = Field(
        description=(
            "How often the source is looked at: at least 5m. A source whose ETag has not changed costs one"
            " request and no download."
        )
    )
    supersede: Literal["Never", "Paused"] = Field(
        "Never",
        description=(
            "What becomes of a rollout that is paused when the source has a newer version. Never: it ends"
            " first. Paused: it makes way, unless it was proven worse or a person paused it."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("duration(self.every) >= duration('5m')", "follow.every must be at least 5m, for example 10m"),
    )


class Model(ApiModel):
    """The trained model."""

    uri: Uri = Field(
        description=(f"Where the model file is: {FORMS}, in a store that the operator's configuration names.")
    )
    sha256: Sha256 | None = Field(
        None, description="SHA-256 of the file, hexadecimal. Left out: pinned at first sight."
    )
    follow: Follow | None = Field(
        None,
        description=(
            "Look at the URI again, and roll out what lies there, as any version is. Left out: only a change"
            " of spec brings a new version. It needs a signature, or a RolloutPolicy that names the place in"
            " allowedSources.followUnsigned. No part of the version."
        ),
    )
    format: SourceFormat | None = Field(
        None,
        description=(
            "Format of the file; left out: ONNX. SKLearn (skops), XGBoost (JSON, UBJ), LightGBM (txt),"
            " TensorFlow (SavedModel as .zip or .tar), Keras (.keras, .h5), TFLite (.tflite) and PyTorch"
            " (TorchScript .pt, exported programs .pt2) are converted to ONNX in images of their own. Pickles"
            " are never read."
        ),
    )
    rounds: Rounds | None = Field(
        None,
        description=(
            "Of XGBoost: which rounds of a model that was trained with early stopping are served. Best: those"
            " up to the best one, as XGBClassifier and XGBRegressor predict; All: every round of the file."
            " Left out: Best."
        ),
    )
    missing: float | None = Field(
        None,
        description=(
            "Of XGBoost: the value that meant missing in training, as in XGBClassifier(missing=0); its file"
            " does not hold it. Left out: only NaN is missing."
        ),
    )
    credentials: Credentials | None = Field(
        None, description="How to read the file; left out: the store's default Secret, or anonymous."
    )
    signature: Signature | None = Field(
        None, description="Whose signature the file must carry; left out: no signature is required."
    )
    interface_change: Literal["Refused", "Allowed"] = Field(
        "Refused",
        description=(
            "Whether a new version may have other inputs or outputs (names, data types, shapes) than the one"
            " that serves. Refused: it is Rejected before it serves anything; set Allowed when the clients"
            " are ready for it. No part of the version."
        ),
    )
    lineage: Lineage | None = Field(
        None,
        description=(
            "Free text kept with the revision: commit, data set, training run. No part of the version."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.follow) || !has(self.sha256)",
            "model.follow takes what lies at the URI, and model.sha256 one file alone: leave one of them out",
        ),
        Rule(
            f"!has(self.follow) || self.uri.matches('^({'|'.join(FOLLOWED)})://')",
            "model.follow: hf:// and oci:// URIs name a commit or a digest, behind which nothing changes;"
            f" copy the model to a path in a store of {', '.join(FOLLOWED)}, or change the URI for each"
            " version",
        ),
    )

    @property
    def flavour(self) -> Flavour | None:
        """The image with the libraries that convert the format; None: the default image."""
        return FLAVOUR_BY_FORMAT.get(self.format or "ONNX")


class Data(ApiModel):
    """A data set: an .npz archive with one array for each model input and one with the labels, or
    a table (Parquet, CSV) with such columns.
    """

    uri: Uri = Field(description=f"The .npz, .parquet or .csv file: {FORMS}.")
    labels: str = Field(
        "labels",
        description=(
            "Name of the array or column with the labels, shape [n]: integer classes, or numbers for mae and"
            " mse."
        ),
        max_length=128,
    )
    slices: Annotated[list[ArrayName], Field(max_length=16)] | None = Field(
        None, description="Names of arrays or columns that divide the data into slices."
    )
    credentials: Credentials | None = Field(
        None, description="How to read it; left out: those of spec.model."
    )


class ModelFile(ApiModel):
    """Another ONNX file."""

    uri: Uri = Field(
        description=(f"Where it is: {FORMS}, in a store that the operator's configuration names.")
    )
    sha256: Sha256 | None = Field(None, description="SHA-256 of the file, hexadecimal; checked when given.")
    credentials: Credentials | None = Field(
        None, description="How to read it; left out: those of spec.model."
    )
