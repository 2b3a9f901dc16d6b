"""A careful reader of Parquet: the named columns of every row, as `Row`s; page checksums are verified.

Only plain types are read, and lists and structs of them. A file with an extension type is refused whole:
such types run code of their own when they are read.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from rsft_cluster.errors import ConfigError
from rsft_cluster.prompts.rows import BadLine, Row

_ROWS_AT_ONCE = 1024
_LEAVES = (
    pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating,
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
)  # fmt: skip


def read_parquet(source: pa.NativeFile, *, file: str, names: Sequence[str]) -> Iterator[Row | BadLine]:
    """Yield every row, holding only the fields that `names` reach; dots reach into structs.

    Raises ConfigError for a column of a type that cannot be text or messages.
    """
    parquet = pq.ParquetFile(source, page_checksum_verification=True)
    schema = parquet.schema_arrow
    _refuse_extensions(schema, file)
    _check_types(schema, names, file)
    number = 0
    for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(names)):
        for fields in _fields(batch):
            number += 1
            if isinstance(fields, UnicodeDecodeError):
                reason = f"not UTF-8: byte 0x{fields.object[fields.start]:02x} at offset {fields.start} of a text"
                yield BadLine.of_bytes(fields.object, file=file, line=number, byte_offset=None, reason=reason)
            else:
                yield Row(number, None, None, fields, schema.names)


def _fields(batch: pa.RecordBatch) -> Sequence[dict[str, object] | UnicodeDecodeError]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [error]
    return [row for i in range(batch.num_rows) for row in _fields(batch.slice(i, 1))]


def _refuse_extensions(schema: pa.Schema, file: str) -> None:
    for field in schema:
        name = _extension(field)
        if name:
            raise ConfigError(
                f"{file}: column {field.name!r} has the extension type {name}, which is never read; "
                "write the file with plain text, number, list and struct columns"
            )


def _extension(field: pa.Field) -> str | None:
    # A type that this process does not know is read as its storage; only the metadata tells.
    declared = (field.metadata or {}).get(b"ARROW:extension:name")
    if declared is not None:
        return declared.decode("utf-8", "replace")
    if isinstance(field.type, pa.BaseExtensionType):
        return field.type.extension_name
    nested = (_extension(field.type.field(i)) for i in range(field.type.num_fields))
    return next((name for name in nested if name), None)


def _check_types(schema: pa.Schema, names: Sequence[str], file: str) -> None:
    for name in names:
        kind = _type_of(schema, name)
        if kind is not None and not _is_plain(kind):
            raise ConfigError(
                f"{file}: column {name!r} has the type {kind}; expected text, a number, a boolean, "
                "or lists and structs of these. Cast it where the file is written."
            )


def _type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    if name in schema.names:
        return schema.field(name).type
    parts = name.split(".")
    kind: pa.DataType = pa.struct(list(schema))
    for part in parts:
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        kind = kind.field(part).type
    return kind


def _is_plain(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.DictionaryType):
        return _is_plain(kind.value_type)
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_struct(kind)
    if nested:
        return all(_is_plain(kind.field(i).type) for i in range(kind.num_fields))
    return any(is_leaf(kind) for is_leaf in _LEAVES)
