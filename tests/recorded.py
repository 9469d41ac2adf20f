"""Facts that tests derive and compare with changed_fields.json. A failing test prints the lines to paste there."""

import json
from pathlib import Path

FILE = Path(__file__).parent / "changed_fields.json"


def assert_recorded(section: str, derived: dict[str, object]) -> None:
    """Fail with the lines to paste unless a section of the file is what was derived."""
    recorded = json.loads(FILE.read_text(encoding="utf-8"))[section]
    gone = sorted(recorded.keys() - derived.keys())
    lines = [
        f"  {json.dumps(name)}: {json.dumps(fact)},\n"
        for name, fact in sorted(derived.items())
        if recorded.get(name) != fact
    ]
    assert not gone, f"remove from {section!r} in {FILE}: {gone}"
    assert not lines, f"if this change is intended, paste into {section!r} in {FILE}:\n{''.join(lines)}"
