#!/usr/bin/env bash
# Copy the table and the picture that scripts/table1.sh wrote into docs/table1_mini.md, between its markers.
# Usage: bash scripts/table1_page.sh [FOLDER]     (default: models/table1_mini)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-models/table1_mini}
python generations/report.py --table1 "$folder"
cp "$folder/table1.png" docs/images/table1_mini.png
python - "$folder/table1.md" docs/table1_mini.md <<'PY'
import re
import sys
from pathlib import Path

table, page = map(Path, sys.argv[1:])
marks = r"(?<=<!-- table -->\n).*(?=<!-- end of the table -->)"
picture = """
![Six captions painted and four images captioned by each row](images/table1_mini.png)

*The first captions and images of the test split, by the first seed, not chosen.*

"""
text, found = re.subn(marks, lambda _: table.read_text() + picture, page.read_text(), flags=re.S)
if found != 1:
    sys.exit(f"{page} lacks the lines <!-- table --> and <!-- end of the table -->")
page.write_text(text)
PY
