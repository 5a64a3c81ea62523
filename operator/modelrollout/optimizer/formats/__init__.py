"""Models in their own libraries: read, converted to ONNX, asked for answers. Runs in a process of
its own (``__main__``), never in the Job's.
"""

# What that process is given and leaves in the folder that it shares with the Job's, and how it says
# that memory ended.
CONVERTED, QUESTIONS, ANSWERS, REFUSAL, TENSORS = (
    "converted.onnx",
    "questions.npz",
    "answers.npz",
    "refusal.json",
    "tensors.json",
)
OUT_OF_MEMORY = 137
