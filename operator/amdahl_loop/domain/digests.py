"""What stands for a text where only its sameness matters?"""

import hashlib
import json


def hash_text(*parts: str) -> str:
    """SHA-256 in hex of the parts, unambiguously joined."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
