"""Small Parquet files with pages of zstd: of both versions, with a dictionary and without one.

    python training/tests/reference/columns.py

Writes zstd-1.parquet and zstd-2.parquet beside this file. Needs pyarrow.
"""

from pathlib import Path

import pyarrow
import pyarrow.parquet


def text(i):
    """Row `i`: nothing in every seventh, few different ones in the first half, all different in the second."""
    if i % 7 == 3:
        return None
    return f"row {i % 5}, ä" if i < 60 else f"row {i}: " + f"{i * i} and " * (i % 40)


def main():
    table = pyarrow.table({"id": list(range(120)), "text": [text(i) for i in range(120)]})
    for version in ("1", "2"):
        out = Path(__file__).with_name(f"zstd-{version}.parquet")
        pyarrow.parquet.write_table(
            table, out, compression="zstd", data_page_version=f"{version}.0", row_group_size=60, data_page_size=1024,
            write_batch_size=8, use_dictionary=True, dictionary_pagesize_limit=1024, store_schema=False,
        )
        print(f"{out}: {out.stat().st_size} bytes, pyarrow {pyarrow.__version__}")


if __name__ == "__main__":
    main()
