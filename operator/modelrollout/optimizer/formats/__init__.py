"""Models in other formats than ONNX, in their own libraries. ``registry`` lists the formats;
docs/contributing/adding-a-model-format.md says how to add one.
"""

# Files that ``isolated`` (in the Job's process) and ``worker`` (in one of its own) exchange, and
# the worker's exit code where memory ran out.
CONVERTED, PROBES, NOTES, INPUTS, OUTPUTS, REFUSAL, DECLARED = (
    "converted.onnx",
    "probes.npz",
    "notes.json",
    "inputs.npz",
    "outputs.npz",
    "refusal.json",
    "declared.json",
)
OUT_OF_MEMORY = 137
