"""What an export is. No heavy imports: the command line reads this file."""

from typing import Literal

Format = Literal["huggingface", "gguf", "peft", "numpy", "c", "html"]
Dtype = Literal["float32", "bfloat16", "float16"]
"""Type of the parameters in the files."""
