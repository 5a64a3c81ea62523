"""Every reason that a Job, a verdict, a condition or an event may carry.

The values are the strings on the wire. ``python -m modelrollout.reasonsgen`` writes the reasons
pages of the documentation from this enumeration.
"""

from __future__ import annotations

from enum import Flag, StrEnum, auto


class Place(Flag):
    """Where a reason appears; each place has a page of the documentation."""

    JOB = auto()  # the result of a Job
    VERDICT = auto()  # on a metric, on golden data, on the shadow
    ROLLOUT = auto()  # conditions and events


JOB, VERDICT, ROLLOUT = Place.JOB, Place.VERDICT, Place.ROLLOUT


class Reason(StrEnum):
    """A reason, with where it appears, one line of help in Markdown, and for the reasons of Jobs
    the exit code.
    """

    places: Place
    help: str
    exit_code: int | None

    def __new__(cls, value: str, places: Place, help: str, exit_code: int | None = None) -> Reason:
        member = str.__new__(cls, value)
        member._value_ = value
        member.places, member.help, member.exit_code = places, help, exit_code
        return member

    # The task and the Job itself
    COMPLETED = "Completed", JOB, "the task is done", 0
    TASK_INVALID = "TaskInvalid", JOB, "the Job cannot read its task", 10
    TERMINATED = (
        "Terminated",
        JOB,
        "the Job was stopped from outside, for example because its node was drained",
        1,
    )
    DEADLINE_EXCEEDED = (
        "DeadlineExceeded",
        JOB | ROLLOUT,
        "not done within the limit for one run; the message says how long each stage took",
        15,
    )
    OUT_OF_MEMORY = "OutOfMemory", JOB | ROLLOUT, "the Job ran out of memory", 14
    MEMORY_LIMIT_TOO_LOW = (
        "MemoryLimitTooLow",
        JOB,
        "a step needs more memory for a model of this size than the Job may use; checked before "
        "the work begins",
        14,
    )
    OUT_OF_DISK = "OutOfDisk", JOB | ROLLOUT, "the Job ran out of disk", 14
    INTERNAL_ERROR = "InternalError", JOB, "an unexpected error; the Job's log has the traceback", 1
    # Stores: models, data sets, artifacts
    UNSUPPORTED_SCHEME = (
        "UnsupportedScheme",
        JOB,
        "the URI does not begin with the scheme of a store, such as s3:// or https://",
        10,
    )
    URI_INVALID = (
        "UriInvalid",
        JOB,
        "the URI names no object, or contains a user name, password, query or fragment (only in an "
        "object stored by an earlier version: the API server refuses new ones)",
        10,
    )
    REDIRECT_REFUSED = (
        "RedirectRefused",
        JOB,
        "the store redirects to a place that its configuration does not allow: another host, port"
        " or folder, plain http, an address of a node or a metadata service, or a loop; nothing "
        "was sent there",
        10,
    )
    INSECURE_STORE = "InsecureStore", JOB, "plain HTTP to a store that is not configured for it", 10
    OBJECT_MISSING = "ObjectMissing", JOB, "the object does not exist", 10
    BUCKET_MISSING = "BucketMissing", JOB, "the bucket does not exist", 10
    TOO_LARGE = (
        "TooLarge",
        JOB,
        "the object, or an archive or data set after unpacking, is larger than the limit",
        10,
    )
    WRONG_REGION = "WrongRegion", JOB, "the bucket lies in another region", 10
    STORE_REFUSED = "StoreRefused", JOB, "the store refused the request (another 4xx status)", 10
    CERTIFICATE_REFUSED = "CertificateRefused", JOB, "the store's TLS certificate is not trusted", 10
    CREDENTIALS_MISSING = (
        "CredentialsMissing",
        JOB,
        "the store requires credentials and spec names none, or the Secret is not mounted",
        11,
    )
    CREDENTIALS_INCOMPLETE = "CredentialsIncomplete", JOB, "the Secret lacks a key, or one cannot be used", 11
    CREDENTIALS_EXPIRED = "CredentialsExpired", JOB, "the store says that the credentials have expired", 11
    ACCESS_DENIED = "AccessDenied", JOB, "the store refused the credentials", 11
    OBJECT_REPLACED = (
        "ObjectReplaced",
        JOB,
        "the object was replaced or removed while it was read; nothing of it was used",
        1,
    )
    STORE_NOT_RESOLVED = "StoreNotResolved", JOB, "the store's host name does not resolve", 1
    STORE_UNREACHABLE = "StoreUnreachable", JOB, "no answer, or the connection broke", 1
    STORE_UNAVAILABLE = (
        "StoreUnavailable",
        JOB,
        "the store answered with a server error or asked to slow down",
        1,
    )
    SIGNATURE_MISSING = (
        "SignatureMissing",
        JOB,
        "`spec.model.signature` requires a signature, and there is none",
        10,
    )
    SIGNATURE_INVALID = (
        "SignatureInvalid",
        JOB,
        "the signature was made with another key or for another file, or was changed",
        10,
    )
    SIGNATURE_MALFORMED = (
        "SignatureMalformed",
        JOB,
        "the file is not an OpenSSF model signing signature of one file with SHA-256",
        10,
    )
    SIGNATURE_UNSUPPORTED = (
        "SignatureUnsupported",
        JOB,
        "the signature was made with a certificate or an identity (keyless), and only keys are supported",
        10,
    )
    SIGNER_KEY_MISSING = (
        "SignerKeyMissing",
        JOB,
        "the Secret with the public key does not exist, or lacks the key",
        10,
    )
    SIGNER_KEY_INVALID = (
        "SignerKeyInvalid",
        JOB,
        "the file is not a public key in PEM form on P-256, P-384 or P-521",
        10,
    )
    DIGEST_MISMATCH = "DigestMismatch", JOB, "the file's SHA-256 differs from the pinned one", 10
    # The model
    MODEL_TRUNCATED = "ModelTruncated", JOB, "the file is empty or cut off", 10
    PICKLE_REFUSED = (
        "PickleRefused",
        JOB,
        "a Python pickle, a PyTorch checkpoint, or more than tensors in an exported program: "
        "loading it could run arbitrary code",
        10,
    )
    NOT_ONNX = (
        "NotOnnx",
        JOB,
        "the file has another format (HDF5, SavedModel, zip, an HTML page, a Git LFS pointer), "
        "which the message names if it is known, or graphs nested deeper than 100",
        10,
    )
    FORMAT_NOT_SET = "FormatNotSet", JOB, "the file is not ONNX, but the Job's image was chosen for ONNX", 10
    FORMAT_MISMATCH = "FormatMismatch", JOB, "the file's format is not that of `spec.model.format`", 10
    FLAVOUR_MISSING = "FlavourMissing", JOB, "the Job's image lacks the libraries of the format", 10
    SKOPS_UNTRUSTED = "SkopsUntrusted", JOB, "a skops file with types that skops does not trust", 10
    OBJECTIVE_UNSUPPORTED = (
        "ObjectiveUnsupported",
        JOB,
        "a boosted model with an objective, or a kind of trees, that is not converted; the message names it",
        10,
    )
    MODEL_TIMEOUT = (
        "ModelTimeout",
        JOB,
        "the library of the format did not finish reading the file in time",
        10,
    )
    KERAS_UNTRUSTED = (
        "KerasUntrusted",
        JOB,
        "a Keras file with code (Lambda or custom layers), with layers that refer to other files or "
        "frameworks, or with weights stored elsewhere",
        10,
    )
    OPERATOR_REFUSED = (
        "OperatorRefused",
        JOB,
        "a SavedModel with an operator that does more than compute (reads files, calls Python), has "
        "no equivalent in ONNX, or contains the name of a file; a TFLite model with TensorFlow or "
        "custom operators; a PyTorch program with an operator that is not on the list of those that "
        "only compute",
        10,
    )
    SERVING_SIGNATURE_MISSING = (
        "ServingSignatureMissing",
        JOB,
        "the model has several signatures, and none is `serving_default`",
        10,
    )
    CONVERSION_FAILED = (
        "ConversionFailed",
        JOB,
        "skl2onnx, tf2onnx or torch.onnx cannot convert this model",
        10,
    )
    CONVERSION_UNFAITHFUL = (
        "ConversionUnfaithful",
        JOB,
        "the answers of the converted model differ from those of the original",
        10,
    )
    TENSOR_MISMATCH = (
        "TensorMismatch",
        JOB,
        "the PyTorch model's inputs or outputs differ from those in `spec.serving.triton`",
        10,
    )
    MODEL_TOO_LARGE = (
        "ModelTooLarge",
        JOB,
        "the model has over 2 GiB in one ONNX file, or in constants of its nodes",
        10,
    )
    EXTERNAL_DATA = "ExternalData", JOB, "the model stores tensors in other files", 10
    EXTERNAL_DATA_UNSAFE = (
        "ExternalDataUnsafe",
        JOB,
        "a tensor refers to a file outside the archive, or to none",
        10,
    )
    EXTERNAL_DATA_MISSING = (
        "ExternalDataMissing",
        JOB,
        "a tensor's file is missing or too short, or the part that the tensor names has another "
        "length than the tensor",
        10,
    )
    ARCHIVE_BROKEN = (
        "ArchiveBroken",
        JOB,
        "the archive is cut off, damaged, encrypted, or packed in an unknown way",
        10,
    )
    BACKEND_FILE_MISSING = (
        "BackendFileMissing",
        JOB,
        "the archive lacks the file that `spec.serving.triton.backend` reads, or the source is not "
        "an archive although that backend needs one",
        10,
    )
    BACKEND_FILE_INVALID = (
        "BackendFileInvalid",
        JOB,
        "the backend's file has another format, is cut off, or has another tool's header",
        10,
    )
    BACKEND_FILE_AMBIGUOUS = (
        "BackendFileAmbiguous",
        JOB,
        "the archive holds several models, or several versions of one",
        10,
    )
    CODE_REFUSED = (
        "CodeRefused",
        JOB,
        "the model contains code that spec does not declare: Python, a library, pickled weights, "
        "`trust_remote_code`, a graph that accesses files, or something that would run while "
        "PyTorch reads the file",
        10,
    )
    NAME_REFUSED = (
        "NameRefused",
        JOB,
        "a file name contains unsupported characters, is too long, or is reserved",
        10,
    )
    CONFIG_MISSING = (
        "ConfigMissing",
        JOB,
        "neither spec nor config.pbtxt declares the model's inputs and outputs",
        10,
    )
    CONFIG_AMBIGUOUS = "ConfigAmbiguous", JOB, "spec and config.pbtxt both declare the inputs and outputs", 10
    CONFIG_INVALID = "ConfigInvalid", JOB, "Triton could not read config.pbtxt, or the file is incomplete", 10
    CONFIG_MISMATCH = "ConfigMismatch", JOB, "config.pbtxt is for another backend or names another file", 10
    CONFIG_UNSUPPORTED = (
        "ConfigUnsupported",
        JOB,
        "config.pbtxt uses what a single version that moves between pods cannot have: other models, "
        "sequences, paths, numbers of GPUs",
        10,
    )
    TOO_FEW_GPUS = (
        "TooFewGPUs",
        JOB,
        "the model is divided over more GPUs (vLLM, TensorRT-LLM) than a pod requests",
        10,
    )
    TENSOR_UNKNOWN = "TensorUnknown", JOB, "the model has no such input or output", 10
    ENGINE_INVALID = "EngineInvalid", JOB, "model.json is not a JSON object with a model", 10
    WEIGHTS_MISSING = (
        "WeightsMissing",
        JOB,
        "model.json names weights that are not in the archive; the operator fetches nothing from a hub",
        10,
    )
    ARCHIVE_UNSAFE = (
        "ArchiveUnsafe",
        JOB,
        "a name in the archive (or in a .keras file, or of a weight of an exported program) leads "
        "out of its folder, occurs twice, or is a link or a device",
        10,
    )
    ARCHIVE_AMBIGUOUS = "ArchiveAmbiguous", JOB, "the archive holds several models", 10
    CUSTOM_OPERATOR = (
        "CustomOperator",
        JOB,
        "the model has an operator of neither ONNX nor ONNX Runtime, which would need code",
        10,
    )
    TENSOR_TOO_LARGE = (
        "TensorTooLarge",
        JOB,
        "a tensor, an input or an output declares more than 2^31 elements, or a negative size",
        10,
    )
    MODEL_INVALID = "ModelInvalid", JOB, "the ONNX checker, or the model's own library, rejects the model", 10
    MODEL_REFUSED = "ModelRefused", JOB, "the model is valid ONNX, but ONNX Runtime does not run it", 10
    TYPE_UNSUPPORTED = (
        "TypeUnsupported",
        JOB,
        "an input or output is not a tensor, or has a type that cannot be served",
        10,
    )
    SHAPE_UNKNOWN = "ShapeUnknown", JOB, "an input or output has no shape", 10
    BATCHING_IMPOSSIBLE = (
        "BatchingImpossible",
        JOB,
        "`maxBatchSize` is set, but the model's first dimension is fixed, its config.pbtxt allows less, or"
        " it fails on several rows",
        10,
    )
    NO_BATCH_DIMENSION = "NoBatchDimension", JOB, "the inputs have different fixed first dimensions", 10
    INFERENCE_TIMEOUT = "InferenceTimeout", JOB, "the model took more than 300 s for 32 samples", 10
    OUTPUT_NOT_CLASSES = (
        "OutputNotClasses",
        JOB,
        "the metric accuracy needs classes, and the model's outputs are not classes",
        10,
    )
    OUTPUT_NOT_SCORES = (
        "OutputNotScores",
        JOB,
        "the metrics auc and topK need scores, and the model's outputs are not scores",
        10,
    )
    OUTPUT_NOT_NUMBERS = (
        "OutputNotNumbers",
        JOB,
        "the metrics mae and mse need numbers, and the model's outputs are not numbers",
        10,
    )
    OUTPUT_UNKNOWN = "OutputUnknown", JOB, "`output` names no output of the model", 10
    OUTPUT_AMBIGUOUS = "OutputAmbiguous", JOB, "several outputs could be judged, and none is named", 10
    OUTPUT_NOT_BOXES = "OutputNotBoxes", JOB, "the metric boxIou needs an output of boxes [..., 4]", 10
    OUTPUT_NOT_FINITE = "OutputNotFinite", JOB, "a regression model answered NaN or Inf", 10
    # Data sets: calibration, held-out, golden
    DATA_NOT_NPZ = "DataNotNpz", JOB, "the data set is not an .npz archive, or is damaged", 10
    DATA_PICKLE_REFUSED = "DataPickleRefused", JOB, "an array holds Python objects", 10
    DATA_INPUT_MISSING = "DataInputMissing", JOB, "the data set has no array for an input of the model", 10
    DATA_EMPTY = "DataEmpty", JOB, "the data set has no samples", 10
    DATA_SHAPE_MISMATCH = "DataShapeMismatch", JOB, "an array does not fit the model's input", 10
    DATA_TYPE_MISMATCH = (
        "DataTypeMismatch",
        JOB,
        "an array has another type than the input; integers are refused for a float input, because "
        "they are usually unscaled pixels",
        10,
    )
    DATA_LENGTH_MISMATCH = "DataLengthMismatch", JOB, "the arrays have different numbers of samples", 10
    DATA_NOT_TABLE = (
        "DataNotTable",
        JOB,
        "a data set is a damaged table (Parquet, CSV), or holds what is no number and no word",
        10,
    )
    DATA_NOT_FINITE = (
        "DataNotFinite",
        JOB,
        "an array contains NaN, or Inf that the model does not answer with numbers",
        10,
    )
    LABELS_NOT_NUMBERS = "LabelsNotNumbers", JOB, "labels for mae or mse are not finite numbers", 10
    LABELS_MISSING = "LabelsMissing", JOB, "the archive has no array of that name", 10
    LABELS_NOT_INTEGER = "LabelsNotInteger", JOB, "labels are not integers", 10
    LABELS_SHAPE = "LabelsShape", JOB, "labels are not one-dimensional", 10
    LABELS_LENGTH = "LabelsLength", JOB, "labels and samples differ in number", 10
    LABELS_OUT_OF_RANGE = "LabelsOutOfRange", JOB, "labels name classes that the model cannot predict", 10
    SLICE_INVALID = "SliceInvalid", JOB, "a slice's array is missing, has another length, or contains NaN", 10
    CALIBRATION_MISSING = "CalibrationMissing", JOB, "`method: Static` without calibration data", 10
    # Optimization and gate
    ALREADY_QUANTIZED = "AlreadyQuantized", JOB, "the model is already quantized", 10
    OPSET_TOO_OLD = (
        "OpsetTooOld",
        JOB,
        "`int8` and BFloat16 need opset 13, and ONNX's converter does not get the model there with the "
        "same answers",
        10,
    )
    NOTHING_TO_QUANTIZE = (
        "NothingToQuantize",
        JOB,
        "the model has no operator that this method quantizes (Dynamic leaves convolutions alone; "
        "trees have none)",
        10,
    )
    STEP_FAILED = (
        "StepFailed",
        JOB,
        "a step's library cannot handle this model, or its output cannot be run; the Job's log has "
        "the traceback",
        10,
    )
    ANSWERS_DIFFER = (
        "AnswersDiffer",
        JOB,
        "a step without a gate changed the model's answers too much, on made-up inputs or on the step's data",
        10,
    )
    QUANTIZATION_FAILED = "QuantizationFailed", JOB, "the quantizer cannot handle this model", 10
    NOTHING_TO_PRUNE = (
        "NothingToPrune",
        JOB,
        "the model has no channels (or no weights) that can be removed safely",
        10,
    )
    SPARSITY_TOO_HIGH = (
        "SparsityTooHigh",
        JOB,
        "the channels that can be removed hold less than `sparsity` requests; the message says how much",
        10,
    )
    PRUNING_FAILED = "PruningFailed", JOB, "ONNX Runtime cannot measure the model's activations", 10
    STUDENT_MISMATCH = (
        "StudentMismatch",
        JOB,
        "the student's inputs and outputs differ from those of the source model",
        10,
    )
    TRAINING_UNSUPPORTED = (
        "TrainingUnsupported",
        JOB,
        "the model has an operator that training does not support (the message names it), or no "
        "float32 weights",
        10,
    )
    TRAINING_DATA_TOO_SMALL = (
        "TrainingDataTooSmall",
        JOB,
        "the training data has fewer samples than the model's fixed batch",
        10,
    )
    TRAINING_DIVERGED = "TrainingDiverged", JOB, "the loss is no longer a finite number", 10
    TOOL_MISSING = "ToolMissing", JOB, "the Job's image lacks a tool that the step needs", 10
    CONTAINER_OUTPUT_MISSING = (
        "ContainerOutputMissing",
        JOB,
        "the step's container exited with code 0 and wrote no /out/model.onnx",
        10,
    )
    CONTAINER_OUTPUT_INVALID = (
        "ContainerOutputInvalid",
        JOB,
        "the step's container wrote something that is not a readable regular file, or is larger "
        "than an ONNX file can be",
        10,
    )
    CONTAINER_OUTPUT_MISMATCH = (
        "ContainerOutputMismatch",
        JOB,
        "the inputs and outputs of the model that the container wrote differ from those of the source model",
        10,
    )
    SELECTION_IS_HELD_OUT = (
        "SelectionIsHeldOut",
        JOB,
        "`auto.data` is the same file as the gate's data, so the gate would overrate the model "
        "that `auto` chose",
        10,
    )
    SELECTION_UNFIT = (
        "SelectionUnfit",
        JOB,
        "on `auto.data` not even the original model passes the gate's metrics: too few samples "
        "for the budget, or a value beyond `min` or `max`; the message says which",
        10,
    )
    NOTHING_TO_CONVERT = "NothingToConvert", JOB, "the model has no float32 weights to store in 16 bit", 10
    OUT_OF_RANGE = "OutOfRange", JOB, "a weight is too large for float16", 10
    GRAPH_OPTIMIZATION_FAILED = (
        "GraphOptimizationFailed",
        JOB,
        "ONNX Runtime's optimizer cannot handle this model",
        10,
    )
    WITHIN_BUDGET = "WithinBudget", JOB, "the gate of the prepared model passed", 0
    ACCURACY_DROP = (
        "AccuracyDrop",
        JOB,
        "the loss exceeds `maxDrop` and is proven (the 95 % interval lies above 0)",
        12,
    )
    ACCURACY_LOW = "AccuracyLow", JOB | VERDICT, "the accuracy is below `min`", 12
    METRIC_DROP = (
        "MetricDrop",
        JOB,
        "the loss of another metric exceeds its budget and is proven; the message names the "
        "metric, and the slice if one decided",
        12,
    )
    METRIC_LOW = "MetricLow", JOB, "another metric is below `min`, or above `max`", 12
    TOP_COUNT_TOO_LARGE = (
        "TopCountTooLarge",
        JOB,
        "`k` is not less than the number of classes: every answer would be right",
        10,
    )
    AVERAGE_IMPOSSIBLE = (
        "AverageImpossible",
        JOB,
        "the metric has `average: Binary`, and the data has more than two classes",
        10,
    )
    AUC_UNDEFINED = (
        "AucUndefined",
        JOB,
        "auc is undefined: all samples, or all samples of a slice, have one class",
        10,
    )
    TOO_FEW_SAMPLES = (
        "TooFewSamples",
        JOB | VERDICT,
        "too few held-out samples to detect a loss beyond the budget, or to place the value "
        "within `min` and `max`; the message says how many are needed",
        13,
    )
    # Tuning
    DATA_NEEDED = (
        "DataNeeded",
        JOB,
        "no input data can be generated, because an input has a size of its own or holds text or "
        "truth values",
        10,
    )
    # Artifacts
    ARTIFACT_MISSING = (
        "ArtifactMissing",
        JOB | ROLLOUT,
        "the prepared model is no longer in the artifact store",
        10,
    )
    ARTIFACT_DIGEST_MISMATCH = (
        "ArtifactDigestMismatch",
        JOB | ROLLOUT,
        "the manifest differs from the one that the revision records",
        10,
    )
    ARTIFACT_CORRUPT = (
        "ArtifactCorrupt",
        JOB | ROLLOUT,
        "a file differs from the manifest, or the manifest has an unexpected form",
        10,
    )
    OUTPUT_REFUSED = (
        "OutputRefused",
        JOB | ROLLOUT,
        "the container that reads the model produced something other than the task specifies "
        "(another backend, a setting, a further file or name), or a revision records such a result; "
        "it is neither published nor served",
        10,
    )
    REFERENCES_INVALID = (
        "ReferencesInvalid",
        JOB,
        "the clean-up of the store cannot read which artifacts are in use, so it deleted nothing",
        10,
    )
    ARTIFACT_IN_THE_WAY = (
        "ArtifactInTheWay",
        JOB,
        "another manifest already exists where the Job has to write, under a name that only the Job "
        "knows; the Job uses nothing of it",
        10,
    )
    # Golden data through the served model
    SERVER_UNREACHABLE = (
        "ServerUnreachable",
        JOB,
        "no server answers at the candidate's address; tune: the Triton in its pod does not come back",
        1,
    )
    SERVER_TIMEOUT = "ServerTimeout", JOB, "the candidate did not answer in time", 1
    MODEL_NOT_SERVED = "ModelNotServed", JOB, "the server answers, but does not serve the model", 1
    WRONG_VERSION = "WrongVersion", JOB, "another version answers at the candidate's address", 1
    INFERENCE_FAILED = (
        "InferenceFailed",
        JOB,
        "the model fails on the data, or without golden data on all made-up inputs, in the server or in"
        " prepare; tune: under every configuration",
        10,
    )
    PROTOCOLS_DISAGREE = (
        "ProtocolsDisagree",
        JOB | VERDICT,
        "HTTP and gRPC give different classes for the same input",
        10,
    )
    STABLE_FAILED = (
        "StableFailed",
        JOB,
        "stable did not answer the golden data; the candidate is not judged without it",
        1,
    )
    STABLE_WRONG_VERSION = "StableWrongVersion", JOB, "another version answers at stable's address", 1
    STABLE_NOT_COMPARABLE = (
        "StableNotComparable",
        JOB,
        "the golden data fits the candidate, but not stable: inputs or outputs changed",
        10,
    )
    # Verdicts on a metric
    PROVEN_NOT_WORSE = (
        "ProvenNotWorse",
        VERDICT,
        "no regression is proven, and a regression that would do too much harm at the next weight"
        " is ruled out",
    )
    PROVEN_WITHIN_LIMIT = (
        "ProvenWithinLimit",
        VERDICT,
        "an absolute limit (`min`, `max`, `share`) is proven to be met, where there is no margin or "
        "no stable revision to compare with",
    )
    WITHIN_LIMITS = (
        "WithinLimits",
        VERDICT,
        "a query's value (or golden data without a stable revision) lies within `min` and `max`",
    )
    ERRORS_HIGH = (
        "ErrorsHigh",
        VERDICT,
        "more failed requests than stable, proven beyond a tenth of `maxIncrease`; or more than `max`",
    )
    CLIENT_ERRORS_HIGH = (
        "ClientErrorsHigh",
        VERDICT,
        "more requests than on stable are refused as wrong (HTTP 4xx), proven beyond a tenth of"
        " `maxIncrease`; or more than `max`",
    )
    REFUSED_REQUESTS_HIGH = (
        "RefusedRequestsHigh",
        VERDICT,
        "more requests than on stable are refused or given up for other causes, proven beyond a tenth of"
        " `maxIncrease`; or more than `max`. Decides nothing in the default metrics",
    )
    LATENCY_HIGH = (
        "LatencyHigh",
        VERDICT,
        "more requests slower than `objective` than stable, proven; or fewer than `share` within it",
    )
    LIMIT_EXCEEDED = (
        "LimitExceeded",
        VERDICT,
        "pauses the rollout and never rolls it back: an absolute limit (`max`, `min`, `share`) is"
        " exceeded, and stable exceeds it too, or was not counted at the same time (a bake)",
    )
    SLICE_ACCURACY_LOW = (
        "SliceAccuracyLow",
        VERDICT,
        "more wrong answers than stable on one slice, proven beyond a tenth of its `maxDrop`, "
        "whatever the result on all answers",
    )
    VALUE_TOO_HIGH = (
        "ValueTooHigh",
        VERDICT,
        "a query's value is above `max`, and has been for as long as `for` says",
    )
    VALUE_TOO_LOW = (
        "ValueTooLow",
        VERDICT,
        "a query's value is below `min`, and has been for as long as `for` says",
    )
    BEYOND_LIMITS = (
        "BeyondLimits",
        VERDICT,
        "a query's value is beyond its limits, for less time than `for`",
    )
    INITIAL_DELAY = (
        "InitialDelay",
        VERDICT | ROLLOUT,
        "nothing is counted, because `initialDelay` has not passed since the weight changed or a pod of"
        " either side became ready",
    )
    NOT_YET_PROVEN = (
        "NotYetProven",
        VERDICT,
        "enough samples to judge, too few for a proof; the message and `needed` say how many more. Or worse"
        " so far, while stable has been seen too briefly to tell that from an episode",
    )
    NO_DATA = (
        "NoData",
        VERDICT | ROLLOUT,
        "no request or label of the canary has been counted in this step, or a query returned nothing",
    )
    NO_STABLE_DATA = (
        "NoStableData",
        VERDICT,
        "no request or label of stable has been counted, so there is nothing to compare with",
    )
    NO_METRICS = (
        "NoMetrics",
        VERDICT,
        "`metrics: []`, or only dry runs: no metric decides, and nothing is promoted without evidence",
    )
    PROVIDER_UNREACHABLE = (
        "ProviderUnreachable",
        VERDICT,
        "the operator cannot connect to Prometheus: refused, unknown host, TLS",
    )
    PROVIDER_TIMEOUT = (
        "ProviderTimeout",
        VERDICT,
        "Prometheus did not answer within `timeoutSeconds` (a query of the spec's own: 2 s), or "
        "ended the query itself",
    )
    PROVIDER_DENIED = (
        "ProviderDenied",
        VERDICT,
        "Prometheus refused the credentials (401, 403), or their files cannot be read",
    )
    PROVIDER_ERROR = (
        "ProviderError",
        VERDICT,
        "Prometheus failed (5xx, 429), or broke off while it answered a query of the spec's own",
    )
    QUERY_REJECTED = (
        "QueryRejected",
        VERDICT,
        "Prometheus rejected the query (the message quotes it), or the answer is too large",
    )
    BAD_ANSWER = (
        "BadAnswer",
        VERDICT,
        "the answer is not an instant vector: a login page, a wrong path, a range selector",
    )
    SEVERAL_SERIES = (
        "SeveralSeries",
        VERDICT,
        "a query returned several series, and none of them is *the* value",
    )
    NOT_A_NUMBER = (
        "NotANumber",
        VERDICT,
        "a query returned NaN or infinity (often 0 / 0), which neither passes nor fails",
    )
    EVIDENCE_IMPLAUSIBLE = (
        "EvidenceImplausible",
        VERDICT,
        "impossible counts, so no metric is judged: NaN, more bad requests than requests, a share"
        " of the requests far above the canary's weight, or more labels than answered rows",
    )
    WEIGHT_IGNORED = (
        "WeightIgnored",
        VERDICT,
        "the gateway sends (nearly) all requests or none to the canary, whatever its weight says,"
        " proven by its counters; the step holds, and nothing is rolled back for it",
    )
    STALE_DATA = (
        "StaleData",
        VERDICT,
        "what the provider has was scraped before this step began: counting begins with a later scrape,"
        " and the step waits for it",
    )
    NOT_A_BUCKET_BOUND = (
        "NotABucketBound",
        VERDICT,
        "`objective` is not a bucket bound of the histogram of who counts, the gateway or Triton; the"
        " message names the bounds",
    )
    NO_SOURCE = (
        "NoSource",
        VERDICT,
        "no source measures this: `clientErrors` or `refusedRequests` without a gateway whose counters"
        " are known, `latency` where Triton counts and its servers show no histogram (the message has"
        " their version), or no Prometheus configured",
    )
    QUERY_NOT_ALLOWED = (
        "QueryNotAllowed",
        VERDICT | ROLLOUT,
        "a query of the spec's own where none is allowed, or one that cannot be confined to its "
        "namespace or costs too much; a new rollout with it does not begin",
    )
    QUERY_PENDING = (
        "QueryPending",
        VERDICT,
        "a query of the spec's own has no answer yet: it takes longer than half a second, or "
        "others of its namespace come first",
    )
    QUERIES_PAUSED = (
        "QueriesPaused",
        VERDICT,
        "a query of this namespace's own took too long, or broke Prometheus; no further one runs "
        "until the time in the message",
    )
    UNKNOWN_PLACEHOLDER = "UnknownPlaceholder", VERDICT, "a query contains an unknown `{{...}}`"
    UNKNOWN_TEMPLATE = (
        "UnknownTemplate",
        VERDICT,
        "`templates` names a template that no RolloutPolicy in force here defines; the message "
        "lists the known ones",
    )
    TOO_MANY_METRICS = (
        "TooManyMetrics",
        VERDICT,
        "there are more than 32 metrics, including those of templates and policies",
    )
    # Verdicts on golden data
    NOT_PAIRED = (
        "NotPaired",
        VERDICT,
        "stable did not answer the same inputs, so there is nothing to compare with",
    )
    NO_RESULT = "NoResult", VERDICT, "the evaluation ended without usable counts"
    # Verdicts on the shadow
    SHADOW_AGREES = (
        "ShadowAgrees",
        VERDICT,
        "proven: the canary's answer differs for at most 1 - `minAgreement` of the mirrored requests",
    )
    SHADOW_DISAGREES = (
        "ShadowDisagrees",
        VERDICT,
        "proven: the canary's answer differs for more than that, or the canary fails on the requests",
    )
    # At rest
    STABLE = "Stable", ROLLOUT, "the current spec is the stable revision, and it serves"
    SERVING = "Serving", ROLLOUT, "a pod of the revision that has the traffic is ready"
    SCALED_TO_ZERO = (
        "ScaledToZero",
        ROLLOUT,
        "`spec.serving.replicas` is 0: no pod serves, as spec asks; a new version is prepared, and goes on"
        " by itself once there are replicas",
    )
    NO_STABLE = "NoStable", ROLLOUT, "no revision has become stable yet"
    NO_READY_PODS = (
        "NoReadyPods",
        ROLLOUT,
        "no pod of the revision is ready: it gets no traffic until one is. `kubectl describe pod`",
    )
    PENDING = "Pending", ROLLOUT, "the rollout has not begun, or stable's pods are starting"
    HEALTHY = "Healthy", ROLLOUT, "the servers of stable and of the canary are ready"
    SERVER_NOT_READY = "ServerNotReady", ROLLOUT, "a server that was ready is no longer ready"
    SERVER_CRASHED = (
        "ServerCrashed",
        ROLLOUT,
        "Triton ended, or a Python process of the model died. For stable it is also an event and "
        "in ServersHealthy",
    )
    SERVER_RESTARTED = (
        "ServerRestarted",
        ROLLOUT,
        "a server of the version on trial ended by itself and was started again, and stable's did not: the "
        "step waits in case it happens again",
    )
    REPEATED_CRASHES = (
        "RepeatedCrashes",
        ROLLOUT,
        "servers of the version on trial ended by themselves, by a signal, an exit code or for their memory, "
        "at least two times more than twice as often as stable's",
    )
    DRAIN_FROZEN = (
        "DrainFrozen",
        ROLLOUT,
        "the pods of this revision end as they were rendered, and `spec.serving.drain` says otherwise now:"
        " the next revision has that",
    )
    UNHARDENED = (
        "Unhardened",
        ROLLOUT,
        "an earlier operator rendered these pods, and any client that reaches them inside the "
        "cluster can manage their servers: run `modelrollout restart`",
    )
    TRITON_VULNERABLE = (
        "TritonVulnerable",
        ROLLOUT,
        "NVIDIA's security bulletins (as of the operator's release) name flaws in the version of "
        "Triton that a pod reports (`GET /v2`); with some of them one request can end the server "
        "or run code, and no gateway prevents that. Set `spec.serving.triton.image`, or "
        "`triton.image` in the chart, to the release in the message. With `gates.patchedServers` "
        "of a RolloutPolicy a new revision is Rejected for it",
    )
    TRITON_TOO_OLD = (
        "TritonTooOld",
        ROLLOUT,
        "an earlier operator rendered these pods, and their Triton is too old for the flags that "
        "would harden them",
    )
    CHILD_REFUSED = (
        "ChildRefused",
        ROLLOUT,
        "the API server refuses a child (quota, admission, RBAC); the message quotes it",
    )
    NAME_TAKEN = (
        "NameTaken",
        ROLLOUT,
        "an object with the name of a child exists, but neither the ModelDeployment nor one of "
        "its revisions controls it, whatever its labels are; the message names it and its "
        "controller. The operator leaves it unchanged and carries on with the rest",
    )
    UNVERIFIED = (
        "Unverified",
        ROLLOUT,
        "the operator cannot tell whether others can write the counters that evidence comes from",
    )
    COUNTED_BY_SERVERS = (
        "CountedByServers",
        ROLLOUT,
        "the gateway's controller has no counters by backend that the operator knows, so Triton's own"
        " counters judge the version: errors alone",
    )
    UNPROTECTED = (
        "Unprotected",
        ROLLOUT,
        "during a shadow: the operator writes no NetworkPolicies in this namespace "
        "(`networkPolicy.models`), so it is unknown who reaches the comparer",
    )
    FOREIGN_TARGETS = (
        "ForeignTargets",
        ROLLOUT,
        "others can write the counters now; the operator's log names the pods. The rollout "
        "continues: pause it if you do not trust them",
    )
    IN_PROGRESS = "InProgress", ROLLOUT, "the stage, or the replacement of pods, is under way"
    INSUFFICIENT_GPU = (
        "InsufficientGPU",
        ROLLOUT,
        "too few GPUs are free on the nodes that fit; the message has the numbers. After "
        "`unscheduledDeadline` the rollout ends",
    )
    UNSCHEDULABLE = "Unschedulable", ROLLOUT, "no node fits; the message is the scheduler's"
    IDLE = "Idle", ROLLOUT, "no rollout is under way"
    PROGRESSING = "Progressing", ROLLOUT, "a rollout is under way"
    PAUSED = "Paused", ROLLOUT, "the rollout waits for `promote` or `abort`"
    PASSED = "Passed", ROLLOUT, "the latest rollout has passed this stage"
    SKIPPED = "Skipped", ROLLOUT, "the latest rollout did not need this stage"
    NOT_REACHED = "NotReached", ROLLOUT, "the latest rollout has not reached this stage"
    # What keeps a spec from being rolled out
    INVALID_SPEC = (
        "InvalidSpec",
        ROLLOUT,
        "the operator cannot read a spec that the API server accepted (an older CRD), for example"
        " a URI with a user name, password or query",
    )
    STORE_NOT_ALLOWED = (
        "StoreNotAllowed",
        ROLLOUT,
        "a URI is in none of the stores of the operator's configuration",
    )
    TRAINER_MISSING = (
        "TrainerMissing",
        ROLLOUT,
        "an optimization step needs the trainer image (it trains, or is int4), and the operator has none",
    )
    IMAGE_FLAVOURS_CLASH = (
        "ImageFlavoursClash",
        ROLLOUT,
        "an optimization step needs the trainer image, and `spec.model.format` needs the image "
        "`trees`, `tensorflow` or `pytorch`; a Job has only one",
    )
    PROMETHEUS_NOT_ALLOWED = (
        "PrometheusNotAllowed",
        ROLLOUT,
        "the provider is not in the operator's configuration",
    )
    GATEWAY_API_MISSING = (
        "GatewayAPIMissing",
        ROLLOUT,
        "spec.traffic needs routes, and the cluster has no such kind",
    )
    GATEWAY_REQUIRED = (
        "GatewayRequired",
        ROLLOUT,
        "spec.rollout.abTest or shadow without a gateway: only a gateway can match headers or "
        "mirror, and it mirrors only HTTP",
    )
    GATEWAY_FEATURE_MISSING = (
        "GatewayFeatureMissing",
        ROLLOUT,
        "the GatewayClass does not list a feature that the spec needs (the message names field, "
        "GatewayClass and feature). Mirroring also needs a class that lists features",
    )
    TIMEOUTS_UNSUPPORTED = (
        "TimeoutsUnsupported",
        ROLLOUT,
        "the GatewayClass does not list, or cannot be read to list, the feature that"
        " `spec.traffic.timeouts` needs (the message names it): its gateway may ignore them in silence",
    )
    SESSION_AFFINITY_UNSUPPORTED = (
        "SessionAffinityUnsupported",
        ROLLOUT,
        "the gateway of `spec.traffic.sessionAffinity` is not known to keep a session at one revision while"
        " weights divide requests, or the operator may not write the policy that does (the message says"
        " which)",
    )
    SESSION_AFFINITY_REFUSED = (
        "SessionAffinityRefused",
        ROLLOUT,
        "Envoy Gateway refuses the BackendTrafficPolicy of `spec.traffic.sessionAffinity`, mostly because"
        " the routes have another one; the message quotes its reason",
    )
    FILTER_UNSUPPORTED = (
        "FilterUnsupported",
        ROLLOUT,
        "the GatewayClass does not list the feature that a filter of `spec.traffic.filters` needs (the"
        " message names it)",
    )
    FILTER_NOT_ALLOWED = (
        "FilterNotAllowed",
        ROLLOUT,
        "a RolloutPolicy forbids `spec.traffic.filters` (`gates.filters`), or the operator's configuration"
        " does not name the kind of an extensionRef (`routes.extensionRefs`), or a filter changes a header"
        " of the operator's, of the protocol, or of the spec's own A/B test",
    )
    NAME_RESERVED = (
        "NameReserved",
        ROLLOUT,
        "under a RolloutPolicy that demands metrics, this name has served another version, so its"
        " clients would get this one without a comparison",
    )
    HOSTNAME_TAKEN = (
        "HostnameTaken",
        ROLLOUT,
        "another ModelDeployment holds this host name (over HTTP: with the same served name, or in"
        " another namespace) or one that overlaps it, or a route that is not the operator's takes its"
        " requests",
    )
    HOSTNAME_NOT_ALLOWED = (
        "HostnameNotAllowed",
        ROLLOUT,
        "a RolloutPolicy with `allowedHostnames` does not allow the name; or no policy has such a"
        " list, and the name is a wildcard or the chart sets `hostnames.onlyByPolicy`",
    )
    GATEWAY_CLASSES_DIFFER = (
        "GatewayClassesDiffer",
        ROLLOUT,
        "Gateways in `spec.traffic` are of several GatewayClasses, which count requests and carry features"
        " each in its own way",
    )
    GATEWAY_UNKNOWN = (
        "GatewayUnknown",
        VERDICT | ROLLOUT,
        "the operator cannot read the Gateway or its GatewayClass (its log says why), which"
        " spec.rollout.shadow needs, and a step that the gateway's counters judge",
    )
    DEFINITION_OUTDATED = (
        "DefinitionOutdated",
        ROLLOUT,
        "the API server serves a definition (CRD) that is older than the operator and drops fields of it;"
        " no rollout begins, and RolloutPolicies count as invalid, until `crds/` of the operator's"
        " release is applied",
    )
    POLICY_INVALID = (
        "PolicyInvalid",
        ROLLOUT,
        "a RolloutPolicy that matches cannot be read, so it is unknown what it forbids",
    )
    SOURCE_NOT_ALLOWED = "SourceNotAllowed", ROLLOUT, "a URI is outside of what a RolloutPolicy allows"
    CODE_NOT_ALLOWED = (
        "CodeNotAllowed",
        ROLLOUT,
        "the model may carry code (`spec.serving.triton.code`), and its place is not in "
        "`allowedSources.code` of a RolloutPolicy; or no policy has such a list",
    )
    FOLLOW_UNSIGNED = (
        "FollowUnsigned",
        ROLLOUT,
        "spec follows its source (`spec.model.follow`) without a signature, and its place is not in "
        "`allowedSources.followUnsigned` of a RolloutPolicy; or no policy has such a list",
    )
    IMAGE_NOT_ALLOWED = (
        "ImageNotAllowed",
        ROLLOUT,
        "an image in spec is outside of what a RolloutPolicy allows; or no policy lists images, "
        "and the chart sets `workloads.onlyByPolicy`",
    )
    SERVICE_ACCOUNT_NOT_ALLOWED = (
        "ServiceAccountNotAllowed",
        ROLLOUT,
        "a RolloutPolicy with `allowedServiceAccounts` does not list "
        "`spec.serving.serviceAccountName` (`default` if it is left out); or no policy has such a"
        " list, and the chart sets `workloads.onlyByPolicy`",
    )
    SECRET_NOT_ALLOWED = (
        "SecretNotAllowed",
        ROLLOUT,
        "a Secret in spec (credentials, a signer's key, `imagePullSecrets`) is not the store's "
        "own, and a RolloutPolicy with `allowedSecrets` does not list it; one in `spec.serving.pod` is a"
        " store's, or a RolloutPolicy with `allowedSecrets` or `allowedPods.secrets` does not list it in"
        " the latter; or no policy has such a list, and the chart sets `workloads.onlyByPolicy`",
    )
    POD_FIELD_NOT_ALLOWED = (
        "PodFieldNotAllowed",
        ROLLOUT,
        "`spec.serving.pod` has a label, an annotation or a PriorityClass that the operator's configuration"
        " does not list (`workloads.pods`), or one of these, a RuntimeClass, a scheduler, a variable of the"
        " environment or a volume claim that a RolloutPolicy with `allowedPods` does not list; or no policy"
        " lists one of the last four, and the chart sets `workloads.onlyByPolicy`",
    )
    AFFINITY_NOT_ALLOWED = (
        "AffinityNotAllowed",
        ROLLOUT,
        "required anti-affinity against pods of other namespaces, which would keep those pods off the node",
    )
    GATE_REQUIRED = (
        "GateRequired",
        ROLLOUT,
        "a RolloutPolicy demands golden data, held-out data, a digest, a smaller budget, or (for "
        "its metrics) a strategy that begins with few requests",
    )
    SLOT_HELD_TOO_LONG = (
        "SlotHeldTooLong",
        ROLLOUT,
        "the rollout held a slot of a RolloutPolicy for longer than `limits.maxHold`, so the "
        "operator ended it; traffic went back to stable",
    )
    LIMIT_TOO_SMALL = (
        "LimitTooSmall",
        ROLLOUT,
        "the new revision alone needs more GPUs than a RolloutPolicy allows for all rollouts",
    )
    FROZEN = "Frozen", ROLLOUT, "a RolloutPolicy freezes rollouts: none starts and no weight rises"
    FREEZE_WINDOW = (
        "FreezeWindow",
        ROLLOUT,
        "a freeze window of a RolloutPolicy is open; the message says until when",
    )
    CHILD_UNREADABLE = (
        "ChildUnreadable",
        ROLLOUT,
        "the operator can no longer read a child of its own: the object is larger than 256 KiB or "
        "nested too deeply",
    )
    REVISION_UNREADABLE = "RevisionUnreadable", ROLLOUT, "a newer operator made the revision in flight"
    QUARANTINED = "Quarantined", ROLLOUT, "this version failed before; the message names revision and reason"
    ROLLED_BACK_BY_USER = (
        "RolledBackByUser",
        ROLLOUT,
        "a person rolled back, and spec still names the version that was left",
    )
    # Tuning
    SERVING_TUNED = (
        "ServingTuned",
        ROLLOUT,
        "tuning chose settings, or kept the configured ones; the message has them with throughput"
        " and latency",
    )
    OBJECTIVE_UNMET = (
        "ObjectiveUnmet",
        ROLLOUT,
        "no settings met the latency objective: the configured ones stay, and the canary's evidence decides",
    )
    # What a stage waits for
    WAITING_FOR_SLOT = (
        "WaitingForSlot",
        ROLLOUT,
        "a RolloutPolicy limits how many rollouts or GPUs may be in use at a time; the message "
        "has the place in the queue and who is ahead",
    )
    WAITING_FOR_JOB = (
        "WaitingForJob",
        ROLLOUT,
        "a RolloutPolicy (limits.jobs) or the operator's configuration (maxJobs) limits how many Jobs "
        "resolve and prepare models at a time; the message has the place in the queue",
    )
    PREPARED_TOGETHER = (
        "PreparedTogether",
        ROLLOUT,
        "another ModelDeployment of the namespace, which the message names, needs the same "
        "preparation; its prepare Job does the work for both",
    )
    IMAGE_PULL_FAILED = "ImagePullFailed", ROLLOUT, "an image cannot be pulled"
    CONTAINER_CONFIG_ERROR = "ContainerConfigError", ROLLOUT, "a container cannot be created"
    BACKEND_MISSING = (
        "BackendMissing",
        ROLLOUT,
        "the Triton image lacks the backend that the model is served by",
    )
    MODEL_NOT_LOADED = "ModelNotLoaded", ROLLOUT, "Triton does not load the model; the message quotes it"
    GATEWAY_MISSING = (
        "GatewayMissing",
        ROLLOUT,
        "the Gateway in `spec.traffic.gateway` does not exist, or is another namespace's and takes no "
        "routes of this one",
    )
    GATEWAY_NOT_PROGRAMMED = (
        "GatewayNotProgrammed",
        ROLLOUT,
        "the Gateway or its listener is not programmed, or its GatewayClass does not exist or is not "
        "accepted; the message says which",
    )
    NO_MATCHING_LISTENER = (
        "NoMatchingListener",
        ROLLOUT,
        "no listener of the Gateway takes such a route: by kind, namespace or host name",
    )
    ROUTE_NOT_ACCEPTED = (
        "RouteNotAccepted",
        ROLLOUT,
        "the gateway refuses the route; the message quotes its reason",
    )
    TRAFFIC_UNCONFIRMED = (
        "TrafficUnconfirmed",
        ROLLOUT,
        "the gateway has not answered for the present routes; the message says what is missing",
    )
    SCALING_UP = (
        "ScalingUp",
        ROLLOUT,
        "too few pods are ready for the next weight, or for all traffic; the former weight stays meanwhile",
    )
    TRAFFIC_NOT_SHIFTED = "TrafficNotShifted", ROLLOUT, "the gateway did not apply the weight in time"
    COMPARER_NOT_READY = (
        "ComparerNotReady",
        ROLLOUT,
        "the pod that compares mirrored requests is not ready",
    )
    MIRROR_NOT_TAKEN_UP = "MirrorNotTakenUp", ROLLOUT, "the gateway did not apply the mirror in time"
    PROGRESS_DEADLINE_EXCEEDED = (
        "ProgressDeadlineExceeded",
        ROLLOUT,
        "the stage did not end within `progressDeadline`, and no cause is known",
    )
    PAUSE_STEP = "PauseStep", ROLLOUT, "a pause step of spec; no problem"
    PAUSED_BY_USER = (
        "PausedByUser",
        ROLLOUT,
        "a person paused the rollout; no problem. A version that is proven worse is rolled back all the same",
    )
    INCONCLUSIVE = (
        "Inconclusive",
        ROLLOUT,
        "no verdict within `progressDeadline` (or `errorLimit`), and `onInconclusive` is Pause",
    )
    DEADLINE_UNREACHABLE = (
        "DeadlineUnreachable",
        ROLLOUT,
        "at the current rate of samples the evidence will not suffice before `progressDeadline`; "
        "the message has the numbers",
    )
    # Jobs: queues, lost nodes, limits
    QUEUED = (
        "Queued",
        ROLLOUT,
        "Kueue has not admitted the Job yet (the message has its Workload and quotes Kueue), or a"
        " person suspended it",
    )
    NOT_ADMISSIBLE = (
        "NotAdmissible",
        ROLLOUT,
        "Kueue cannot admit the Job: the queue does not exist or is stopped, its Workload was "
        "deactivated, or (if Kueue says so) no quota will ever suffice",
    )
    POD_REFUSED = (
        "PodRefused",
        ROLLOUT,
        "a Job or a server gets no pod: a ResourceQuota, a LimitRange, admission or a missing ServiceAccount "
        "refuses it (quoted in the message), or the node's kubelet does",
    )
    EVICTED = "Evicted", ROLLOUT, "the node was drained, short of a resource, or shutting down"
    PREEMPTED = "Preempted", ROLLOUT, "the scheduler replaced the pod by one with a higher priority"
    NODE_LOST = "NodeLost", ROLLOUT, "the node of the pod is gone or does not answer"
    KILLED = "Killed", ROLLOUT, "SIGKILL, not because of memory: a person or a program on the node"
    RESULT_LOST = "ResultLost", ROLLOUT, "the result of a Job was deleted with its pod, several times"
    POD_FOREIGN = (
        "PodForeign",
        ROLLOUT,
        "a pod that is not the Job's carries its labels, and the Job ended because of it; its "
        "result does not count",
    )
    POD_CHANGED = (
        "PodChanged",
        ROLLOUT,
        "the Job's pod differs from the Job's template (the message says how), so it may have run"
        " something else, and no other pod has a result",
    )
    CONTAINER_FAILED = (
        "ContainerFailed",
        ROLLOUT,
        "the container of your optimization step ended with a code other than 0; the message has "
        "its last line",
    )
    JOB_CRASHED = "JobCrashed", ROLLOUT, "native code crashed (SIGSEGV and the like)"
    ARTIFACT_FOREIGN = (
        "ArtifactForeign",
        ROLLOUT,
        "the Job's result names an artifact that is neither in the Job's own folder nor recorded "
        "by a revision of the namespace",
    )
    JOB_FAILED = "JobFailed", ROLLOUT, "the Job ended without a result or a known cause"
    # How a rollout ends
    REPLACED = "Replaced", ROLLOUT, "another revision became stable; you can roll back to this one"
    ABORTED_BY_USER = "AbortedByUser", ROLLOUT, "a user aborted the rollout"
    SUPERSEDED = "Superseded", ROLLOUT, "spec named another version before the rollout ended"
    SIGNATURE_CHANGED = "SignatureChanged", ROLLOUT, "inputs or outputs differ from those of stable"
    # Events
    ROLLOUT_STARTED = "RolloutStarted", ROLLOUT, "a rollout started"
    PREPARED = "Prepared", ROLLOUT, "the model is prepared, and passed its gate"
    EVALUATED = "Evaluated", ROLLOUT, "the revision passed golden data"
    ANSWERED = "Answered", ROLLOUT, "without golden data: the served model answers made-up inputs"
    ANSWERS_UNKNOWN = (
        "AnswersUnknown",
        ROLLOUT,
        "without golden data: the served model could not be asked, or takes no made-up inputs",
    )
    SHADOW_PASSED = "ShadowPassed", ROLLOUT, "the revision agreed with stable on mirrored requests"
    STEP_PASSED = "StepPassed", ROLLOUT, "the revision passed a step"
    PROMOTED = "Promoted", ROLLOUT, "the revision passed all steps and is stable now"
    ROLLED_BACK = "RolledBack", ROLLOUT, "the revision was rolled back"
    FAILED = "Failed", ROLLOUT, "the rollout failed, and its stage gave no reason of its own"
    UNCHANGED = "Unchanged", ROLLOUT, "the source is still that of stable"
    FOLLOWING = "Following", ROLLOUT, "the source is looked at again, as `spec.model.follow` says"
    SOURCE_CHANGED = (
        "SourceChanged",
        ROLLOUT,
        "a source that is followed has other bytes; the message has their SHA-256",
    )
    IN_PLACE = "InPlace", ROLLOUT, "stable makes room for the new revision, or is about to"
    PREVIEW_ENDED = (
        "PreviewEnded",
        ROLLOUT,
        "the time of a preview is over, and no evidence is against the revision",
    )
    BAKE_STARTED = "BakeStarted", ROLLOUT, "the revision has all traffic and is watched"
    PROMOTED_BY_USER = "PromotedByUser", ROLLOUT, "a user promoted a step, or the whole rollout"
    RESUMED_BY_USER = "ResumedByUser", ROLLOUT, "a user resumed the rollout"
    RETRIED_BY_USER = "RetriedByUser", ROLLOUT, "a user retried a revision"
    FOLLOWED_BY_USER = "FollowedByUser", ROLLOUT, "a user let the source be followed again"
    RESTARTED_BY_USER = "RestartedByUser", ROLLOUT, "a user restarted the pods"
    VERB_REFUSED = "VerbRefused", ROLLOUT, "the operator could not carry out a verb; the message says why"
    SIGNATURE_UNKNOWN = (
        "SignatureUnknown",
        ROLLOUT,
        "the operator could not compare inputs and outputs with those of stable",
    )
    CAPACITY_UNKNOWN = (
        "CapacityUnknown",
        ROLLOUT,
        "pods are created although the operator could not see whether GPUs are free",
    )
    FREEZE_OVERRIDDEN = "FreezeOverridden", ROLLOUT, "a user promoted a step during a freeze"
    METRICS_OVERRIDDEN = (
        "MetricsOverridden",
        ROLLOUT,
        "a user promoted a version that the metrics of a RolloutPolicy had not proven",
    )
    METRICS_DEMANDED = (
        "MetricsDemanded",
        ROLLOUT,
        "a weight was about to rise before the metrics of a RolloutPolicy had a verdict",
    )
    PROMOTED_BY_POLICY = (
        "PromotedByPolicy",
        ROLLOUT,
        "a step passed without proof, because `onInconclusive` is Promote",
    )
    STABLE_DEAD = (
        "StableDead",
        ROLLOUT,
        "no pod of stable has been ready for a minute, so the new version is judged without a comparison"
        " and takes over",
    )
    STABLE_BACK = (
        "StableBack",
        ROLLOUT,
        "stable is ready again before the new version was promoted: it is compared after all",
    )
    ROUTES_NARROWED = (
        "RoutesNarrowed",
        ROLLOUT,
        "routes exposed more than clients may request, so the operator narrowed them",
    )
    GRACE_KEPT = (
        "GraceKept",
        ROLLOUT,
        "pods of a version that was proven worse keep their whole time to end, for the operator could not"
        " shorten it",
    )
    CHILD_REVERTED = (
        "ChildReverted",
        ROLLOUT,
        "someone changed a child of the ModelDeployment, and the operator put it back",
    )
    STATE_REBUILT = (
        "StateRebuilt",
        ROLLOUT,
        "status was empty or did not name a stable revision, so the operator recovered it",
    )
    PASS_FAILED = (
        "PassFailed",
        ROLLOUT,
        "the operator failed to reconcile this object and tries again; its log says where",
    )
    UNREADABLE = "Unreadable", ROLLOUT, "the operator ignores this object because it cannot read it"
    # RolloutPolicies
    ACCEPTED = "Accepted", ROLLOUT, "the RolloutPolicy is valid and in force"
    INVALID = (
        "Invalid",
        ROLLOUT,
        "the RolloutPolicy is invalid: ModelDeployments that it matches start no rollout",
    )
