import time
import tracemalloc

import pytest

from sparseshot_jax.data.formats.xml_stream import MAX_DEPTH, MAX_TOKEN, Handlers, XmlFault, number, parse
from sparseshot_jax.errors import InputError

DOCUMENT = b"""<?xml version="1.0" encoding="UTF-8"?>
<list title="t">
  <item X="1.5" name="a&lt;b">one</item>
  <item X="2,5" name="&#228;"/>
  <other><item X="no item of the list"/></other>
</list>
"""


def read(path, text: bytes | None = DOCUMENT, **limits):
    """Numbers, names, texts and ends of the items of the list."""
    if text is not None:
        path.write_bytes(text)
    found = []
    handlers = Handlers(
        start={("list", "item"): lambda a: found.append((number(a, "X"), a["name"]))},
        text={("list", "item"): found.append},
        end={("list", "item"): lambda: found.append("end")},
        roots=("list",),
        title="List XML",
    )
    parse(path, handlers, **limits)
    return found


def items(x):
    return b'<list><item X="%b" name=""/></list>' % x


@pytest.fixture
def path(tmp_path):
    return tmp_path / "f.xml"


def test_elements_by_their_path(path):
    assert read(path) == [(1.5, "a<b"), "one", "end", (2.5, "ä"), "", "end"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "iso-8859-1", "windows-1252"])
def test_encodings(path, encoding):
    declared = "" if encoding.startswith("utf") else f'<?xml version="1.0" encoding="{encoding}"?>'
    text = f'{declared}<list><item X="1" name="é"/></list>'
    assert read(path, text.encode(encoding))[0] == (1.0, "é")


@pytest.mark.parametrize("encoding", ["gbk", "unicode_escape", "hex", "idna", "utf-7", "iso-8859-99", "x"])
def test_encodings_that_are_not_read(path, encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n<list/>'
    with pytest.raises(InputError, match=r"f\.xml: line 1, column \d+: .*encod"):
        read(path, text.encode())


def test_a_wrong_encoding_is_named_with_its_place(path):
    with pytest.raises(InputError, match=r"f\.xml: is not valid XML: not well-formed.*line 2, column 19\."):
        read(path, '<list>\n<item X="1" name="é"/></list>'.encode("latin-1"))
    with pytest.raises(InputError, match="encoding specified in XML declaration is incorrect"):
        read(path, b'<?xml version="1.0" encoding="utf-16"?><list/>')


def test_faults_name_line_column_and_element(path):
    with pytest.raises(InputError, match=r"f\.xml: line 2, column 3: <item>: attribute X is missing\. Cor"):
        read(path, b"<list>\n  <item/>\n</list>")
    with pytest.raises(InputError, match=r"<item>: attribute X must be a number; it is '1e'"):
        read(path, items(b"1e"))

    def refuse(*_):
        raise XmlFault("no")

    for event in ("text", "end"):
        handlers = Handlers(roots=("list",), title="T", **{event: {("list", "item"): refuse}})
        path.write_bytes(b"<list>\n<item></item>\n</list>")
        with pytest.raises(InputError, match="line 2, column 7: <item>: no"):
            parse(path, handlers)


def test_missing_empty_truncated_and_foreign_files(path):
    with pytest.raises(InputError, match=r"f\.xml: cannot be read: No such file"):
        read(path, None)
    with pytest.raises(InputError, match=r"f\.xml: is empty\. List XML was expected"):
        read(path, b"")
    with pytest.raises(InputError, match=r"ends too early, at line 1, column \d+ \(no element found"):
        read(path, b"<?xml version='1.0'?>  ")
    for stop in range(50, len(DOCUMENT) - 2):
        with pytest.raises(InputError, match=r"ends too early, at line \d.*cut off"):
            read(path, DOCUMENT[:stop])
    with pytest.raises(InputError, match=r"not valid XML.*line 1, column 1\. List XML was expected"):
        read(path, b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(InputError, match=r"not valid XML: junk after document element, line 2"):
        read(path, b"<list></list>\n<list/>")
    with pytest.raises(InputError, match=r"first element must be <list> \(List XML\); it is <html>"):
        read(path, b"<html></html>")
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        read(path.parent, None)


def laughs():
    lines = [f'<!ENTITY l{k} "{f"&l{k - 1};" * 10}">' for k in range(1, 10)]
    return "\n".join(
        [
            '<?xml version="1.0"?>',
            "<!DOCTYPE list [",
            '<!ENTITY l0 "ha">',
            *lines,
            "]>",
            '<list><item X="1" name="&l9;"/>&l9;</list>',
        ]
    ).encode()


def test_bombs_are_refused_at_once(path):
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(InputError, match=r"f\.xml: line 2: has a document type.*Delete it"):
        read(path, laughs())
    # One long entity, used often: the quadratic relative.
    quadratic = (
        b'<!DOCTYPE list [<!ENTITY a "' + b"a" * 100_000 + b'">]><list>' + b"&a;" * 10_000 + b"</list>"
    )
    with pytest.raises(InputError, match="document type"):
        read(path, quadratic)
    assert time.perf_counter() - begin < 1
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_nothing_outside_the_file_is_read(path, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    for system in ((tmp_path / "secret.txt").as_uri(), "http://localhost:9/x", "secret.txt"):
        for declared in (
            f'[<!ENTITY e SYSTEM "{system}">]',
            f'[<!ENTITY % e SYSTEM "{system}"> %e;]',
            f'SYSTEM "{system}"',
        ):
            with pytest.raises(InputError, match="document type") as caught:
                read(path, f"<!DOCTYPE list {declared}><list><item X='1' name='&e;'/></list>".encode())
            assert "secret" not in str(caught.value).replace(str(path), "")
    with pytest.raises(InputError, match="undefined entity"):
        read(path, b"<list>&e;</list>")


def test_limits(path):
    depth = MAX_DEPTH - 1
    assert read(path, b"<list>" + b"<x>" * depth + b"</x>" * depth + b"</list>") == []
    with pytest.raises(InputError, match="line 1, column 196: more than 64 elements inside each other"):
        read(path, b"<list>" + b"<x>" * 1_000_000)
    with pytest.raises(InputError, match=r"a tag or comment is longer than 4,194,304 bytes"):
        read(path, b'<list><item name="' + b"x" * (MAX_TOKEN * 3))
    with pytest.raises(InputError, match=r"a tag or comment is longer"):
        read(path, b"<list><!--" + b"x" * (MAX_TOKEN * 3))
    with pytest.raises(InputError, match=r"no element begins in the first 65,536 bytes"):
        read(path, b" " * (1 << 20) + DOCUMENT)
    with pytest.raises(InputError, match=r"<item> holds more than 65,536 characters"):
        read(path, b"<list><item X='1' name=''>" + b"x" * (1 << 20) + b"</item></list>")
    assert read(path, b"<list>" + b"x" * (MAX_TOKEN * 3) + b"</list>") == []  # text that nobody wants
    with pytest.raises(InputError, match=r"must be at most 100 bytes; it is larger"):
        read(path, DOCUMENT, max_bytes=100)
    assert len(read(path, DOCUMENT, max_bytes=len(DOCUMENT))) == 6
